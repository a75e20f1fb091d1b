"""Attention on a CPU in half precision. Imports torch: import this module late.

torch's kernel for CPUs derives in half precision several times as slowly as in fp32, but for very many tokens, where it takes as long.
So here only the forward pass is in half precision, and the derivatives, of the numbers that it kept, are computed in fp32.

The operators have no public name, so that ``works`` tries them before anything relies on them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .onednn import MISSING
from .self_check import agrees

_TRIED = (1, 2, 16, 32)  # batch, heads, tokens, channels
_TOLERANCE = 0.02


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(channels)) v for (batch, heads, tokens, channels) each, keys and values with tokens of their own."""
    # the operator reads a row's channels as if they lay side by side
    parts = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    result: torch.Tensor = _Attention.apply(*parts)  # type: ignore[no-untyped-call]
    return result


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, a half precision, and they compute and derive what its attention does."""
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(_TRIED, generator=draw).to(dtype) for _ in range(3)]
    try:
        return agrees(attend, scaled_dot_product_attention, inputs, _TOLERANCE)
    except MISSING:
        return False


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor
        mixed, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)
        ctx.save_for_backward(query, key, value, mixed, sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *kept, sums = ctx.saved_tensors
        exact = [each.float() for each in (gradients[0], *kept)]
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*exact, sums, 0.0, False)
        return tuple(each.to(gradients[0].dtype) for each in found)
