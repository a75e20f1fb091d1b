"""Attention on a CPU by torch's flash kernel. Imports torch: import this module late.

The backward pass of that kernel takes several times as long in half precision as in fp32, except for very many tokens. So here only the
forward pass is in half precision. Its backward pass is computed in fp32, from the tensors that the forward pass saved.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from . import torch_private
from .self_check import functions_agree

_TRIAL_SHAPE = (1, 2, 16, 32)  # batch, heads, tokens, channels
_TOLERANCE = 0.02


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, zero_keys: int = 0) -> torch.Tensor:
    """softmax(q k' / sqrt(channels)) v for (batch, heads, tokens, channels) each; keys and values may have another number of tokens.

    ``zero_keys``: how many further tokens have keys and values that are all zeros. Such a token adds exp(0) = 1 to the sum that the
    softmax divides by, and nothing else.
    """
    # the operator reads the channels of a token as if they were contiguous
    parts = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    result: torch.Tensor = _Attention.apply(*parts, zero_keys)  # type: ignore[no-untyped-call]
    return result


@functools.cache
def operators_agree(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, and they agree with torch's attention."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(_TRIAL_SHAPE, generator=generator).to(dtype) for _ in range(3)]
    try:
        return functions_agree(attend, scaled_dot_product_attention, inputs, _TOLERANCE)
    except torch_private.MISSING_OPERATOR:
        return False


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, zero_keys: int) -> torch.Tensor:
        mixed, log_sums = torch_private.flash_attention(query, key, value)
        if zero_keys:
            log_zero_keys = log_sums.new_tensor(math.log(zero_keys))
            mixed = mixed * torch.sigmoid(log_sums - log_zero_keys).unsqueeze(-1).to(mixed.dtype)
            log_sums = torch.logaddexp(log_sums, log_zero_keys)
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *saved, log_sums = ctx.saved_tensors
        wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in (gradients[0], *saved)]
        by_input = torch_private.flash_attention_backward(*wide, log_sums)
        return *(each.to(gradients[0].dtype) for each in by_input), None
