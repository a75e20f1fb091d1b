"""Formats without alpha: multiply the scale alpha / rank into a matrix, and record in the metadata how to undo it.

A scale of 1 needs nothing. Multiplying by a power of two is exact in floating point unless a result becomes subnormal (in fp16, below
6.1e-5). The scale goes into whichever matrix (down first, then up) it can be multiplied into exactly. When both would be rounded, the
difference that remains after dividing by the scale is stored in the metadata, compressed, so that the file can be restored bit for bit.
Only when that would take more than ``LIMIT`` characters (large files whose scale is not a power of two) are the last bits of the
remaining layers lost. bf16 and fp32 hold every power of two, so an fp16 file that is written as fp32 loses nothing.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .weights import LoraModule

FOLDED_ALPHA_KEY = "animelora.folded_alpha"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32}
_DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
_BITS |= {torch.float8_e4m3fn: torch.int8, torch.float8_e5m2: torch.int8}
LIMIT = 4_000_000  # characters of metadata for lost bits; programs read the whole header


@dataclass(frozen=True)
class Folded:
    """Layers without alpha. ``errors`` holds the relative rounding error (Frobenius norm) of each rounded layer; ``lossy`` of these cannot
    be restored bit for bit."""

    modules: tuple[LoraModule, ...]
    record: str  # for the metadata
    errors: tuple[float, ...] = ()
    lossy: int = 0


def fold(modules: tuple[LoraModule, ...], dtype: torch.dtype | None, limit: int = LIMIT) -> Folded:
    """``modules`` without alpha and with the same effect, cast to ``dtype``. Modules that are not plain LoRA keep their alpha."""
    folded, records, errors, lost = [], {}, [], dict[str, str]()
    for module in modules:
        name = f"{module.component}.{module.name}"
        changed, place, error = _fold_one(module, dtype)
        if error is not None:
            errors.append(error)
            text = _lost_bits(module.tensors[place], changed.tensors[place], module.scale) if limit else ""
            limit = max(limit - len(text), 0)
            if text and limit:
                lost[name] = text
        folded.append(changed)
        records[name] = _record(module, place)
    counts = Counter(map(str, records.values()))
    common = max(records.values(), key=lambda record: counts[str(record)]) if records else None
    others = {name: record for name, record in records.items() if record != common}
    table = {"all": common, "but": others, **({"lost": lost} if lost else {})}
    return Folded(tuple(folded), json.dumps(table), tuple(errors), len(errors) - len(lost))


def unfold(modules: tuple[LoraModule, ...], text: str) -> tuple[LoraModule, ...]:
    """The modules before ``fold``. An invalid record is ignored, which does not change the effect."""
    try:
        table = json.loads(text)
        common, others, lost = table["all"], table["but"], table.get("lost", {})
        named = [(f"{module.component}.{module.name}", module) for module in modules]
        return tuple(_unfold_one(module, others.get(name, common), lost.get(name, "")) for name, module in named)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, zlib.error):
        return modules


def _fold_one(module: LoraModule, dtype: torch.dtype | None) -> tuple[LoraModule, str, float | None]:
    """The module, the name of the matrix that the scale went into, and the relative error if it was rounded."""
    scale = module.scale
    tensors = {name: tensor if name == "dora_scale" else tensor.to(dtype or tensor.dtype) for name, tensor in module.tensors.items()}
    if not _is_plain(module):
        return replace(module, tensors=tensors), "", None
    cast = replace(module, tensors=tensors, alpha=None)
    if scale == 1.0:
        return cast, "", None
    for place in ("lora_down.weight", "lora_up.weight"):
        scaled, source = _times(tensors[place], scale), module.tensors[place]
        if not _same(tensors[place].to(source.dtype), source):
            source = tensors[place]  # the number type itself rounds the original; judge only the scaling
        if _same(_times(scaled, 1 / scale, source.dtype), source) and bool(scaled.double().isfinite().all()):
            return replace(cast, tensors={**tensors, place: scaled}), place, None
    place = "lora_down.weight"
    scaled, exact = _times(tensors[place], scale), tensors[place].double() * scale
    error = float((scaled.double() - exact).norm() / exact.norm())
    return replace(cast, tensors={**tensors, place: scaled}), place, error


def _unfold_one(module: LoraModule, record: list[Any] | None, lost: str) -> LoraModule:
    if record is None:
        return module
    value, dtype, shape, place = record
    alpha = None if value is None else torch.tensor(value, dtype=_DTYPES[dtype]).reshape(shape)
    restored = replace(module, alpha=alpha)
    if not place or not math.isfinite(restored.scale) or restored.scale == 0:
        return restored
    matrix = _with_lost_bits(_times(module.tensors[place], 1 / restored.scale), lost)
    return replace(restored, tensors={**module.tensors, place: matrix})


def _lost_bits(original: torch.Tensor, scaled: torch.Tensor, scale: float) -> str:
    """The difference between the bit patterns before folding and after unfolding; empty for number types without one."""
    bits = _BITS.get(scaled.dtype)
    if bits is None:
        return ""
    before, after = original.to(scaled.dtype).contiguous(), _times(scaled, 1 / scale).contiguous()
    difference = before.view(bits) - after.view(bits)  # wraps around, as adding does
    data = difference.numpy().astype(f"<i{bits.itemsize}").tobytes()
    return base64.b64encode(zlib.compress(data)).decode("ascii")


def _with_lost_bits(matrix: torch.Tensor, lost: str) -> torch.Tensor:
    """``matrix`` with its lost bits restored; unchanged when they belong to another matrix, because the file was edited."""
    bits = _BITS.get(matrix.dtype)
    if not lost or bits is None:
        return matrix
    size = matrix.numel() * bits.itemsize
    data = zlib.decompressobj().decompress(base64.b64decode(lost, validate=True), size + 1)
    if len(data) != size:
        return matrix
    difference = torch.from_numpy(np.frombuffer(data, f"<i{bits.itemsize}").astype(f"i{bits.itemsize}")).reshape(matrix.shape)
    return (matrix.contiguous().view(bits) + difference).view(matrix.dtype)


def _record(module: LoraModule, place: str) -> list[Any] | None:
    """What ``_unfold_one`` needs; None when there is nothing to undo."""
    if not _is_plain(module):
        return None
    if module.alpha is None:
        return [None, "", [], place]
    return [module.alpha.item(), _NAMES.get(module.alpha.dtype, "F32"), list(module.alpha.shape), place]


def _is_plain(module: LoraModule) -> bool:
    return module.algorithm == "lora" and "lora_mid.weight" not in module.tensors


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both hold the same numbers. torch cannot compare 8-bit floats."""
    return torch.equal(first.double(), second.double()) if first.dtype.itemsize == 1 else torch.equal(first, second)


def _times(tensor: torch.Tensor, factor: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    return (tensor.double() * factor).to(dtype or tensor.dtype)


def folded_record(metadata: Mapping[str, str]) -> str:
    """The record in a file's metadata; empty without one."""
    return metadata.get(FOLDED_ALPHA_KEY, "")
