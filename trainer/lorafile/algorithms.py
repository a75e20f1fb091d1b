"""What a LoRA module can be made of, and the weight change it stands for.

Formulas: LoRA (Hu et al., arXiv 2106.09685); LoHa and Tucker form of convolutions (Yeh et al., LyCORIS, arXiv 2309.14859; FedPara,
arXiv 2108.06098); LoKr (LyCORIS); DoRA (Liu et al., arXiv 2402.09353). Tensors carry LyCORIS' names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..core.errors import UserError

# algorithm: (tensors it must have, tensors it may have). The first whose own tensors are present wins.
ALGORITHMS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "lora": (frozenset({"lora_up.weight", "lora_down.weight"}), frozenset({"lora_mid.weight"})),
    "loha": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), frozenset({"hada_t1", "hada_t2"})),
    "lokr": (
        frozenset(),
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    ),
    "full": (frozenset({"diff"}), frozenset()),
    "norm": (frozenset({"w_norm"}), frozenset()),
}
# What may stand beside any of them: DoRA's magnitudes, changes of the bias (alone they are the algorithm "bias"), and ComfyUI's shape to
# which the layer is enlarged first.
BIASES = frozenset({"diff_b", "b_norm"})
COMMON = BIASES | {"dora_scale", "reshape_weight"}

# Real algorithms that other programs read but whose weight change is not computed here: they pass through renaming unchanged.
PASSED_THROUGH = {
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "oft": ("oft_blocks", "oft_diag"),
    "boft": ("oft_blocks", "rescale"),
    "ia3": ("weight", "on_input"),
    "set": ("set_weight",),  # ComfyUI: the weight itself, whatever the strength
}
_OWN = [must | may for must, may in ALGORITHMS.values()] + [frozenset(names) for names in PASSED_THROUGH.values()]
SUFFIXES: frozenset[str] = COMMON.union({"alpha"}, *_OWN)


def algorithm_of(suffixes: frozenset[str]) -> str | None:
    """The algorithm that tensors with these names belong to (alpha and dora_scale apart); None when it is none of the known."""
    own = suffixes - COMMON - {"alpha"}
    if not own:
        return "bias" if suffixes & BIASES else None
    for name, (must, may) in ALGORITHMS.items():
        if must <= own <= must | may and (name != "lokr" or _lokr_complete(own)):
            return name
    if "oft_blocks" in own:
        return "boft" if "rescale" in own else "oft"
    for name, known in PASSED_THROUGH.items():
        if own <= set(known) and known[0] in own:
            return name
    return None


def rank_of(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The rank that alpha is divided by; None where there is none (full weights, LoKr of two full factors)."""
    if algorithm == "lora":
        return int(tensors["lora_down.weight"].shape[0])
    if algorithm == "loha":
        return int(tensors["hada_w1_b"].shape[0])
    if algorithm == "lokr":
        for suffix in ("lokr_w2_b", "lokr_w1_b"):
            if suffix in tensors:
                return int(tensors[suffix].shape[0])
    return None


def shape_problem(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with the shapes of one module's tensors; empty when they fit each other."""
    if algorithm == "lora" and (problem := _lora_problem(tensors)):
        return problem
    if problem := _bias_problem(tensors):
        return problem
    if algorithm in PASSED_THROUGH or algorithm == "bias" or (algorithm in ("full", "norm") and "dora_scale" not in tensors):
        return ""
    summands = {name: tensor for name, tensor in tensors.items() if name != "dora_scale"}
    try:
        change = delta_shape(algorithm, summands)
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0]
    bias = next((tensors[name] for name in BIASES if name in tensors), None)
    if bias is not None and bias.numel() != change[0] and "reshape_weight" not in tensors:
        return f"a change of the bias {list(bias.shape)} has not a number for each output of {list(change)}"
    scale = tensors.get("dora_scale")
    if scale is not None and not dora_scale_fits(tuple(scale.shape), change, flattened=True):
        return f"dora_scale {list(scale.shape)} has neither a number for each output nor for each input of {list(change)}"
    return ""


def _bias_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    found = [name for name in sorted(BIASES) if name in tensors]
    if len(found) > 1:
        return "it has both diff_b and b_norm"
    return f"{found[0]} {list(tensors[found[0]].shape)} is no row of numbers" if found and tensors[found[0]].ndim != 1 else ""


def _lora_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    up, down, mid = tensors["lora_up.weight"], tensors["lora_down.weight"], tensors.get("lora_mid.weight")
    if up.ndim not in (2, 4) or down.ndim not in (2, 4):
        return f"lora_up {list(up.shape)} and lora_down {list(down.shape)} are no matrices"
    if mid is not None:
        fits = mid.ndim == 4 and up.shape[1] == mid.shape[0] and down.shape[0] == mid.shape[1]
        return "" if fits else f"lora_mid {list(mid.shape)} does not fit between lora_up {list(up.shape)} and lora_down {list(down.shape)}"
    if up.shape[1] != down.shape[0] or (up.ndim == 4 and tuple(up.shape[2:]) != (1, 1)):
        return f"lora_up {list(up.shape)} and lora_down {list(down.shape)} cannot be multiplied"
    return ""


def dora_scale_fits(scale: tuple[int, ...], weight: tuple[int, ...], *, flattened: bool = False) -> bool:
    """Whether ``apply_dora`` can apply a ``dora_scale`` of this shape to a weight (out, in, ...) of that one.

    ``flattened`` weights may be a convolution's as a matrix (LyCORIS' LoHa and LoKr), whose columns are inputs times places of the kernel.
    """
    count = math.prod(scale)
    if not scale or not weight or not count:
        return False
    if count == weight[0] and scale[0] == weight[0]:
        return True
    if len(weight) < 2:
        return False
    return count == weight[1] or (flattened and len(weight) == 2 and len(scale) == 4 and weight[1] % count == 0)


def delta_shape(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The shape of the weight change, found on the meta device without computing it."""
    meta = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    return tuple(unscaled_delta(algorithm, meta).shape)


def unscaled_delta(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight change in fp32 before alpha / rank and DoRA: ``(out, in)``, or ``(out, in, kh, kw)`` for a convolution; ``(out,)`` where
    the bias alone is changed.

    Raises UserError for an algorithm that changes the weight in another way than by addition.
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
        return torch.kron(first, second.contiguous())  # einsum leaves a view that kron cannot reshape
    if algorithm == "full":
        return t["diff"]
    if algorithm == "norm":
        return t["w_norm"]
    if algorithm == "bias":
        return next(t[name] for name in BIASES if name in t)
    raise UserError(
        f"The weight change of the algorithm {algorithm!r} is not computed by this program.",
        "Renaming between formats works; merging, rank reduction and merging into a checkpoint do not.",
        kind="lora",
    )


def product_norm(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The Frobenius norm of ``up`` (out, rank, ...) times ``down`` (rank, in, ...), a scalar on their device.

    The product is not formed: its squared norm is the sum over the entries of (upᵀ up) · (down downᵀ), which are as small as the rank.
    """
    up, down = up.flatten(1), down.flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt()


def apply_dora(weight: torch.Tensor, delta: torch.Tensor, dora_scale: torch.Tensor, *, of_base: bool = False) -> torch.Tensor:
    """DoRA: ``weight + delta`` with the norm of each output (or, in older files, input) channel set to ``dora_scale``. fp32.

    The norm is that of the sum, as in the paper and LyCORIS. ``dora_scale`` has one entry per output channel (first axis) or per
    input channel (second axis). ``of_base``: an output-axis scale is one for the norm of ``weight`` alone (see ``dora.py``).
    """
    total = weight.float() + delta.reshape(weight.shape)
    scale = dora_scale.float()
    on_output = scale.shape[0] == weight.shape[0] and scale.numel() == weight.shape[0]
    axes = [axis for axis in range(weight.ndim) if axis != (0 if on_output else 1)]
    norm = (weight.float() if of_base and on_output else total).pow(2).sum(dim=axes, keepdim=True).sqrt() + torch.finfo(torch.float32).eps
    shape = [1] * weight.ndim
    shape[0 if on_output else 1] = -1
    return total * (scale.reshape(shape) / norm)


def scale_of(algorithm: str, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor | None) -> float:
    """alpha / rank; 1 without an alpha, without a rank, and for full weights."""
    rank = rank_of(algorithm, tensors)
    if alpha is None or not rank:
        return 1.0
    value = float(alpha.float().item())
    return value / rank if math.isfinite(value) else math.nan


def _lokr_complete(own: frozenset[str]) -> bool:
    first = "lokr_w1" in own or {"lokr_w1_a", "lokr_w1_b"} <= own
    second = "lokr_w2" in own or {"lokr_w2_a", "lokr_w2_b"} <= own
    return first and second
