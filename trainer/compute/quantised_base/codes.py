"""Weights in 8 or 4 bits: codes and scales.

- ``int8``: one scale for each output channel, the largest absolute weight over 127 (absmax; LLM.int8, Dettmers et al. 2022, section 2).
- ``fp8``: float8_e4m3fn (Micikevicius et al. 2022) with one scale for each output channel, which keeps small weights out of its coarse end.
- ``nf4``: 4-bit NormalFloat in blocks of 64 (QLoRA, Dettmers et al. 2023, section 3), by bitsandbytes' kernels.
"""

from __future__ import annotations

import importlib
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.messages import Message, Setting

if TYPE_CHECKING:
    import torch

BITS = {"int8": 8, "fp8": 8, "nf4": 4}
_NF4_BLOCK = 64
# Numbers of a weight that are converted at once on a CPU. On two cores with AVX-512 and torch 2.14.1, dequantising 10240 x 1280 from int8
# to bf16 took 18 ms in one piece, 10 ms in strips of 2**15, and 5 ms in strips of 2**17 or 2**19.
_STRIP = 2**17


def quantise_weight(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of ``weight`` (outputs, ...), of any float dtype; ``kind`` is a key of ``BITS``.

    ``int8`` and ``fp8``: codes of the weight's shape and an fp32 scale for each output, of shape (outputs, 1, ...).
    ``nf4``: two codes a byte and an fp32 scale for each block of 64.
    """
    import torch

    if weight.is_meta:  # for planning: sizes only
        return _empty(weight, kind)
    if kind == "nf4":
        codes, state = bitsandbytes().quantize_4bit(weight.float().flatten(), blocksize=_NF4_BLOCK, quant_type="nf4")
        return codes, state.absmax
    limit, dtype = (127.0, torch.int8) if kind == "int8" else (torch.finfo(torch.float8_e4m3fn).max, torch.float8_e4m3fn)
    codes = torch.empty_like(weight, dtype=dtype)
    scales = weight.new_empty((weight.shape[0], *[1] * (weight.ndim - 1)), dtype=torch.float32)
    for strip in _strips(weight):
        exact = weight[strip].float()
        scales[strip] = exact.abs().amax(dim=tuple(range(1, exact.ndim)), keepdim=True).clamp_min(1e-12) / limit
        ratio = exact / scales[strip]
        codes[strip] = (ratio.round() if kind == "int8" else ratio).to(dtype)
    return codes, scales


def dequantise_weight(codes: torch.Tensor, scales: torch.Tensor, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The weight of ``shape`` in ``dtype`` from codes times scales, rounded once."""
    import torch

    if codes.is_meta:
        return codes.new_empty(shape, dtype=dtype)
    if kind != "nf4":
        weight = torch.empty_like(codes, dtype=dtype)
        if kind == "int8" and codes.device.type != "cpu":
            return torch.mul(codes, scales, out=weight)  # one kernel, which computes in fp32 and rounds its result
        for strip in _strips(codes):
            # the product in fp32 and one rounding: 8-bit codes are exact in bf16, but their product with a rounded scale is not
            weight[strip] = codes[strip].to(scales.dtype).mul_(scales[strip])
        return weight
    library, code = bitsandbytes(), _nf4_levels(scales.device)
    state = library.QuantState(scales, shape=(math.prod(shape),), dtype=dtype, blocksize=_NF4_BLOCK, quant_type="nf4", code=code)
    blocks: torch.Tensor = library.dequantize_4bit(codes, state)
    return blocks.view(shape)


def bitsandbytes() -> Any:
    """bitsandbytes' functions. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise UserError(
            f"A base in nf4 needs the package bitsandbytes, which cannot be imported ({error}).",
            Message("Install it in ComfyUI's Python (pip install bitsandbytes), or set ", Setting("training.base_precision", "int8"), "."),
            kind="dependency",
        ) from error


def _strips(weight: torch.Tensor) -> list[slice]:
    """Ranges of outputs: on a CPU, so few that intermediate results stay in its cache; elsewhere all."""
    rows = max(1, _STRIP * len(weight) // max(1, weight.numel())) if weight.device.type == "cpu" else max(1, len(weight))
    return [slice(first, first + rows) for first in range(0, len(weight), rows)]


def _empty(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    if kind == "nf4":
        count = weight.numel()
        return weight.new_empty((-(-count // 2), 1), dtype=torch.uint8), weight.new_empty(-(-count // _NF4_BLOCK), dtype=torch.float32)
    codes = torch.empty_like(weight, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    return codes, weight.new_empty((weight.shape[0], *[1] * (weight.ndim - 1)), dtype=torch.float32)


@lru_cache
def _nf4_levels(device: torch.device) -> torch.Tensor:
    """The sixteen numbers of NF4, made once for each device: making them waits for a GPU and cannot be part of a CUDA graph."""
    levels: torch.Tensor = bitsandbytes().get_4bit_type("nf4", device=device)
    return levels
