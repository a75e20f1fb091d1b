"""A LoRA in one format, ready to write, and what every conversion needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...core.errors import UserError
from ...core.messages import Action, ExportOption, Message
from ..weights import LoraModule, LoraWeights


@dataclass(frozen=True)
class Converted:
    """A LoRA in one format, ready to write. ``notes`` list what could not be converted exactly."""

    format: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def cast(weights: LoraWeights, dtype: torch.dtype | None) -> tuple[LoraModule, ...]:
    """The modules in ``dtype``, or unchanged without one. Raises UserError for weights that are too large for it."""
    if dtype is None:
        return weights.modules
    result = []
    for module in weights:
        tensors = {name: narrowed(name, tensor, dtype) for name, tensor in module.tensors.items()}
        if not all(bool(tensor.float().isfinite().all()) for tensor in tensors.values()):
            raise UserError(
                f"The weights of {module.name} are too large for {dtype}.",
                Message("Choose ", ExportOption("dtype", "bf16"), " or fp32."),
                kind="lora",
            )
        alpha = module.alpha
        if alpha is not None:
            smaller = alpha.to(dtype)
            alpha = smaller if bool(smaller.double() == alpha.double()) else alpha.to(torch.float32)
        result.append(replace(module, tensors=tensors, alpha=alpha))
    return tuple(result)


def narrowed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype``. DoRA's magnitudes never lose bits, because rounding one rounds a whole row of the weight."""
    keeps = not tensor.is_floating_point() or (name == "dora_scale" and dtype.itemsize < tensor.dtype.itemsize)
    return tensor if keeps else tensor.to(dtype)


def require_family(weights: LoraWeights) -> str:
    """The model family. Raises UserError when it is unknown."""
    if weights.family == "unknown":
        raise UserError(
            "The model family of this LoRA is unknown, so its layers cannot be renamed.",
            Message("Use ", Action.STATE_MODEL, "."),
            kind="lora",
        )
    return weights.family


def dropped_embeddings(weights: LoraWeights) -> tuple[str, ...]:
    """A note about embeddings that only kohya's format can hold."""
    return (f"{len(weights.extra)} bundled embeddings were left out, because this format cannot hold them",) if weights.extra else ()
