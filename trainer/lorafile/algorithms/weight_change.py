"""The weight change that a module's tensors stand for.

Formulas: LoRA (Hu et al., arXiv 2106.09685); LoHa and the Tucker form of convolutions (Yeh et al., LyCORIS, arXiv 2309.14859; FedPara,
arXiv 2108.06098); LoKr (LyCORIS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ...core.errors import UserError
from .kinds import BIASES


def rank_of(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The rank by which alpha is divided; None for full weights and for LoKr with two full factors."""
    if algorithm == "lora":
        return int(tensors["lora_down.weight"].shape[0])
    if algorithm == "loha":
        return int(tensors["hada_w1_b"].shape[0])
    if algorithm == "lokr":
        for suffix in ("lokr_w2_b", "lokr_w1_b"):
            if suffix in tensors:
                return int(tensors[suffix].shape[0])
    return None


def scale_of(algorithm: str, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor | None) -> float:
    """alpha / rank; 1 without an alpha or a rank."""
    rank = rank_of(algorithm, tensors)
    if alpha is None or not rank:
        return 1.0
    value = float(alpha.float().item())
    return value / rank if math.isfinite(value) else math.nan


def delta_shape(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The shape of the weight change, worked out on the meta device. ``dora_scale`` may be among the tensors and is ignored."""
    meta = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items() if name != "dora_scale"}
    return tuple(unscaled_delta(algorithm, meta).shape)


def unscaled_delta(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight change in fp32 before alpha / rank and DoRA: ``(out, in)``, ``(out, in, kh, kw)`` for a convolution, or ``(out,)`` when
    only the bias changes.

    Raises UserError for an algorithm that is not an addition to the weight.
    """
    t = {name: tensor if tensor.is_meta else tensor.float() for name, tensor in tensors.items()}
    if algorithm == "lora":
        up, down = t["lora_up.weight"], t["lora_down.weight"]
        if "lora_mid.weight" in t:
            return torch.einsum("op,pqkl,qi->oikl", up.flatten(1), t["lora_mid.weight"], down.flatten(1))
        product = up.flatten(1) @ down.flatten(1)
        return product.reshape(up.shape[0], *down.shape[1:])
    if algorithm == "loha":
        if "hada_t1" in t:
            first = torch.einsum("pqkl,qi,po->oikl", t["hada_t1"], t["hada_w1_b"], t["hada_w1_a"])
            second = torch.einsum("pqkl,qi,po->oikl", t["hada_t2"], t["hada_w2_b"], t["hada_w2_a"])
            return first * second
        return (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    if algorithm == "lokr":
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        if "lokr_w2" in t:
            second = t["lokr_w2"]
        elif "lokr_t2" in t:
            second = torch.einsum("pqkl,qi,po->oikl", t["lokr_t2"], t["lokr_w2_b"], t["lokr_w2_a"])
        else:
            second = t["lokr_w2_a"] @ t["lokr_w2_b"]
        if second.ndim == 4:
            first = first[:, :, None, None]
        return torch.kron(first, second.contiguous())  # einsum returns a view that kron cannot reshape
    if algorithm == "full":
        return t["diff"]
    if algorithm == "norm":
        return t["w_norm"]
    if algorithm == "bias":
        return next(t[name] for name in BIASES if name in t)
    raise UserError(
        f"AnimeLoRA cannot compute the weight change of the algorithm {algorithm!r}.",
        "Conversion between formats works. Merging and rank reduction do not.",
        kind="lora",
    )


def product_norm(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The Frobenius norm of ``up`` (out, rank, ...) times ``down`` (rank, in, ...), a scalar on their device.

    The product is not computed: its squared norm is the sum of the entries of (upᵀ up) · (down downᵀ), both of size rank x rank.
    """
    up, down = up.flatten(1), down.flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt()
