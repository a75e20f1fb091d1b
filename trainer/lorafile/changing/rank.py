"""Reduce the rank of a LoRA by singular value decomposition (Eckart-Young), and report the error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...core.errors import UserError
from ...core.work.progress import track
from ..algorithms.kinds import COMMON
from ..biases import bias_of
from ..family_detection import stated_family
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..weights import LoraModule, LoraWeights

_OVERSAMPLING = 16  # extra directions of the randomised SVD (Halko et al., arXiv 0909.4061)


@dataclass(frozen=True)
class RankReport:
    """The result of a reduction. Errors are relative: the Frobenius norm of the lost part divided by that of the weight change."""

    rank: int
    error: float  # of all layers together
    worst_error: float
    worst_layer: str
    changed: int  # number of layers
    kept: int = 0  # number of layers with a bias or normalisation change, which has no rank

    def __str__(self) -> str:
        kept = f"; {self.kept} bias and normalisation changes have no rank and are kept" if self.kept else ""
        if not self.changed:
            return f"no layer has a rank above {self.rank}, so nothing was reduced{kept}"
        return (
            f"{self.changed} layers reduced to rank {self.rank}; relative error of the weight change {self.error:.3%} "
            f"(worst layer {self.worst_error:.3%}: {self.worst_layer}){kept}"
        )


def reduce_rank(weights: LoraWeights, rank: int) -> tuple[LoraWeights, RankReport]:
    """The best approximation of at most ``rank`` for every layer, with the same scale alpha / rank. Layers of lower rank stay unchanged.

    LoHa, LoKr, Tucker convolutions and full weights become plain LoRA. For DoRA, the change before normalisation is approximated. Bias and
    normalisation changes have no rank and are kept. Raises UserError for unknown algorithms.
    """
    layers = track(weights.modules, "reducing the rank", len(weights.modules))
    modules, report = reduced(layers, rank)
    metadata = reduced_metadata(weights.metadata, weights.modules, modules) if report.changed else dict(weights.metadata)
    return replace(weights, modules=modules, metadata=metadata), report


def reduced(modules: Iterable[LoraModule], rank: int) -> tuple[tuple[LoraModule, ...], RankReport]:
    """``reduce_rank`` for an iterator of modules. Each module is released before the next is requested."""
    if rank < 1:
        raise UserError(f"The rank must be at least 1, not {rank}.", "", kind="lora")
    result, lost, total, worst, changed, kept = [], 0.0, 0.0, (0.0, ""), 0, 0
    for module in modules:
        kept += bias_of(module) is not None or not has_rank(module)
        if not has_rank(module):
            result.append(module)
            continue
        new = reduce_to_rank(module, rank)
        error, norm = _difference(module, new)
        lost, total = lost + error**2, total + norm**2
        if new is not module:
            changed += 1
            worst = max(worst, (error / norm if norm else 0.0, module.name))
        result.append(new)
    return tuple(result), RankReport(rank, math.sqrt(lost / total) if total else 0.0, worst[0], worst[1], changed, kept)


def reduced_metadata(metadata: Mapping[str, str], before: Iterable[LoraModule], after: Sequence[LoraModule]) -> dict[str, str]:
    """``metadata`` with corrected network entries. Arguments of another algorithm (LyCORIS' ``{"algo": "loha"}``) are removed."""
    result = dict(metadata)
    if "ss_network_dim" in result:
        result["ss_network_dim"] = str(max(module.rank or 0 for module in after))
        alphas = Counter(float(module.alpha) for module in after if module.alpha is not None)
        result["ss_network_alpha"] = str(alphas.most_common(1)[0][0]) if alphas else "None"
        result["ss_network_module"] = _plain_module(result)
    if not all(is_plain(module) for module in before):
        result.pop("ss_network_args", None)
    return result


def _plain_module(metadata: Mapping[str, str]) -> str:
    """kohya's network module for plain LoRA of the family that the metadata states."""
    family = stated_family(metadata)
    return FAMILY_LAYOUTS[family].network_module if family else "networks.lora"


def is_plain(module: LoraModule) -> bool:
    """Whether a layer's change is the product of two matrices: LoRA, and not in Tucker form."""
    return module.algorithm == "lora" and "lora_mid.weight" not in module.tensors


def has_rank(module: LoraModule) -> bool:
    """Whether a layer's change is a matrix, unlike that of a bias or a normalisation."""
    return module.algorithm not in ("norm", "bias") and not (module.algorithm == "full" and module.tensors["diff"].ndim < 2)


def reduce_to_rank(module: LoraModule, rank: int) -> LoraModule:
    """``module`` as plain LoRA of at most ``rank``; unchanged when it is one already or has no rank."""
    plain = is_plain(module)
    if not has_rank(module) or (plain and (module.rank or 0) <= rank):
        return module
    if plain:
        up, down = _reduce_product(module.tensors["lora_up.weight"], module.tensors["lora_down.weight"], rank)
    else:
        up, down = _reduce_dense(replace(module, alpha=None).delta(), rank)
    dtype = next(iter(module.tensors.values())).dtype
    tensors = {"lora_up.weight": up.to(dtype), "lora_down.weight": down.to(dtype)}
    tensors |= {name: module.tensors[name] for name in COMMON if name in module.tensors}
    alpha = module.scale * down.shape[0]
    return replace(module, algorithm="lora", tensors=tensors, alpha=_alpha(alpha, dtype))


def _reduce_product(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """up (out, r[, 1, 1]) and down (r, in[, kh, kw]) with a lower r. Cheap and exact, because the SVD is of an r x r core."""
    q_up, r_up = torch.linalg.qr(up.flatten(1).double())
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    new_up = (q_up @ u[:, :rank]) * root
    new_down = root[:, None] * (vh[:rank] @ q_down.T)
    return new_up.reshape(up.shape[0], -1, *up.shape[2:]), new_down.reshape(-1, *down.shape[1:])


def _reduce_dense(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a dense change (out, in[, kh, kw]). Large ones use a randomised SVD, which is fast and close to the optimum."""
    matrix = delta.flatten(1)
    limit = min(matrix.shape)
    rank = min(rank, limit)
    if limit <= 256:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # gives the same file every time
            u, s, v = torch.svd_lowrank(matrix, q=min(rank + _OVERSAMPLING, limit), niter=4)
        vh = v.T
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * vh[:rank]
    tail = [1] * (delta.ndim - 2)
    return up.reshape(*up.shape, *tail), down.reshape(-1, *delta.shape[1:])


def _difference(old: LoraModule, new: LoraModule) -> tuple[float, float]:
    """The norm of the difference between the scaled weight changes, and the norm of the old one."""
    if new is old and old.algorithm == "lora":
        return 0.0, _product_norm(old.tensors["lora_up.weight"], old.tensors["lora_down.weight"]) * abs(old.scale)
    if is_plain(old):
        up = torch.cat([old.tensors["lora_up.weight"].double() * old.scale, -new.tensors["lora_up.weight"].double() * new.scale], 1)
        down = torch.cat([old.tensors["lora_down.weight"].double(), new.tensors["lora_down.weight"].double()])
        return _product_norm(up, down), _product_norm(old.tensors["lora_up.weight"], old.tensors["lora_down.weight"]) * abs(old.scale)
    delta = old.delta()
    return float((delta.reshape(-1) - new.delta().reshape(-1)).norm()), float(delta.norm())


def _product_norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """The Frobenius norm of up @ down, computed from their triangular QR factors in double precision."""
    left = torch.linalg.qr(up.flatten(1).double(), mode="r").R
    right = torch.linalg.qr(down.flatten(1).double().T, mode="r").R
    return float((left @ right.T).norm())


def _alpha(value: float, dtype: torch.dtype) -> torch.Tensor:
    alpha = torch.tensor(value, dtype=dtype)
    return alpha if float(alpha) == value else torch.tensor(value, dtype=torch.float32)
