"""Attention on a CPU in half precision. Imports torch: import this module late.

The backward pass of torch's kernel for CPUs takes several times as long in half precision as in fp32, except for very many tokens. So here
only the forward pass is in half precision. Its backward pass is computed in fp32, from the tensors that the forward pass saved.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..config.run_config import RunConfig
from ..runs.run_plan import RunPlan
from . import torch_private
from .acceleration import Acceleration, Context
from .attention_processor import heads_first, set_kernel
from .self_check import functions_agree

_TRIAL_SHAPE = (1, 2, 16, 32)  # batch, heads, tokens, channels
_TOLERANCE = 0.02


class CpuAttention(Acceleration):
    """Attention whose backward pass is in fp32."""

    title = "faster attention on the CPU"

    def is_wanted(self, context: Context) -> bool:
        """On a CPU in half precision, without xformers."""
        return context.device.type == "cpu" and context.dtype.itemsize == 2 and context.attention == "sdpa"

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """On a CPU in half precision, without xformers."""
        return plan.device == "cpu" and plan.precision != "fp32" and plan.attention == "sdpa"

    def prepare(self, denoiser: torch.nn.Module, context: Context) -> None:
        """Set the processors of the attention layers, if the operators compute the right numbers."""
        if operators_agree(context.dtype):
            set_kernel(denoiser, heads_first(attend))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(channels)) v for (batch, heads, tokens, channels) each; keys and values may have another number of tokens."""
    # the operator reads the channels of a token as if they were contiguous
    parts = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    result: torch.Tensor = _Attention.apply(*parts)  # type: ignore[no-untyped-call]
    return result


@functools.cache
def operators_agree(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, a half precision, and they agree with torch's attention."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(_TRIAL_SHAPE, generator=generator).to(dtype) for _ in range(3)]
    try:
        return functions_agree(attend, scaled_dot_product_attention, inputs, _TOLERANCE)
    except torch_private.MISSING_OPERATOR:
        return False


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed, log_sums = torch_private.flash_attention(query, key, value)
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *saved, log_sums = ctx.saved_tensors
        in_fp32 = [each.float() for each in (gradients[0], *saved)]
        by_input = torch_private.flash_attention_backward(*in_fp32, log_sums)
        return tuple(each.to(gradients[0].dtype) for each in by_input)
