"""alpha for formats without one: the scale alpha / rank is multiplied into a matrix, and the way back is kept in the metadata.

Nothing is done when the scale is 1. Multiplying by a power of two is exact in floating point as long as nothing becomes subnormal
(fp16: below 6.1e-5); the matrix (down, else up) in which it is exact is taken. Where it is exact in neither, numbers are rounded
once and the way back may differ in the last bit. bf16 and fp32 hold every power of two; written as fp32, an fp16 file comes back
bit for bit whatever its scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .weights import LoraModule

KEY = "animelora.folded_alpha"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def fold(modules: tuple[LoraModule, ...], dtype: torch.dtype | None) -> tuple[tuple[LoraModule, ...], str, list[float]]:
    """``modules`` without alpha, of the same effect, cast to ``dtype``; the record for the metadata; an error for each rounded layer.

    The error is relative: the Frobenius norm of what the scaled matrix lost over its own.
    """
    folded, records, errors = [], {}, []
    for module in modules:
        changed, place, error = _fold_one(module, dtype)
        if error is not None:
            errors.append(error)
        folded.append(changed)
        records[f"{module.component}.{module.name}"] = _record(module, place)
    common = max(records.values(), key=list(records.values()).count) if records else None
    others = {name: record for name, record in records.items() if record != common}
    return tuple(folded), json.dumps({"all": common, "but": others}), errors


def unfold(modules: tuple[LoraModule, ...], text: str) -> tuple[LoraModule, ...]:
    """The modules as they were before ``fold``; a record that makes no sense is ignored (the effect is the same)."""
    try:
        table = json.loads(text)
        common, others = table["all"], table["but"]
        return tuple(_unfold_one(module, others.get(f"{module.component}.{module.name}", common)) for module in modules)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return modules


def _fold_one(module: LoraModule, dtype: torch.dtype | None) -> tuple[LoraModule, str, float | None]:
    """The module, the name of the matrix that took the scale, and the relative error where it was rounded."""
    scale = module.scale
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in module.tensors.items()}
    cast = replace(module, tensors=tensors, alpha=None)
    if scale == 1.0 or module.algorithm != "lora":
        return cast, "", None
    for place in ("lora_down.weight", "lora_up.weight"):
        scaled, source = _times(tensors[place], scale), module.tensors[place]
        if not torch.equal(tensors[place].to(source.dtype), source):
            source = tensors[place]  # the number type itself cannot hold the original; judge the scaling alone
        if torch.equal(_times(scaled, 1 / scale, source.dtype), source) and bool(scaled.isfinite().all()):
            return replace(cast, tensors={**tensors, place: scaled}), place, None
    place = "lora_down.weight"
    scaled, exact = _times(tensors[place], scale), tensors[place].double() * scale
    error = float((scaled.double() - exact).norm() / exact.norm())
    return replace(cast, tensors={**tensors, place: scaled}), place, error


def _unfold_one(module: LoraModule, record: list[Any] | None) -> LoraModule:
    if record is None:
        return module
    value, dtype, shape, place = record
    alpha = None if value is None else torch.tensor(value, dtype=_DTYPES[dtype]).reshape(shape)
    restored = replace(module, alpha=alpha)
    if not place or not math.isfinite(restored.scale) or restored.scale == 0:
        return restored
    return replace(restored, tensors={**module.tensors, place: _times(module.tensors[place], 1 / restored.scale)})


def _record(module: LoraModule, place: str) -> list[Any]:
    if module.alpha is None:
        return [None, "", [], place]
    return [module.alpha.item(), _NAMES.get(module.alpha.dtype, "F32"), list(module.alpha.shape), place]


def _times(tensor: torch.Tensor, factor: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    return (tensor.double() * factor).to(dtype or tensor.dtype)


def stated(metadata: Mapping[str, str]) -> str:
    """The record in a file's metadata; empty when it has none."""
    return metadata.get(KEY, "")
