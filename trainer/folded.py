"""LoRA on a frozen Linear in few kernels. Imports torch and peft: import this module late.

peft computes ``base(x) + up(down(x)) * scale`` as written: on a fast GPU at batch 1 most of that is starting kernels, and every one of
its parts is a node of autograd. Here the base, LoRA and both derivatives are one function: scale and sum are done by the matrix
products that need them anyway (``addmm``).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import layer as peft_layer
from torch import nn

from .casting import outside_autocast


class FoldedLinear(peft_layer.Linear):  # type: ignore[misc]
    """peft's LoRA layer around a frozen Linear. What it does not fold (dropout, a packed base, LoRA switched off) peft computes."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) to (..., out), in the dtype of ``x`` or of autocast."""
        (name,) = self.lora_A  # ``fold`` has seen to it
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [name] or self._drops(name):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        base, scale, pair = self.base_layer, self.scaling[name], (self.lora_A[name].weight, self.lora_B[name].weight)
        return outside_autocast(x, lambda rows: _Folded.apply(rows, base.weight, base.bias, *pair, scale))  # type: ignore[no-untyped-call]

    def _drops(self, name: str) -> bool:
        dropout = self.lora_dropout[name]
        return self.training and not isinstance(dropout, nn.Identity)


def fold(layer: Any) -> None:
    """Make ``layer`` fold what it computes if it is peft's plain LoRA on a frozen Linear; else leave it."""
    if type(layer) is not peft_layer.Linear or len(layer.lora_A) != 1 or getattr(layer, "lora_variant", None):
        return
    if type(layer.base_layer) is nn.Linear and not layer.base_layer.weight.requires_grad:
        layer.__class__ = FoldedLinear


class _Folded(torch.autograd.Function):
    """``x W' + b + scale x D' U'`` for W (out, in), D (rank, in), U (out, rank); D and U are cast to the dtype of ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        low_down, low_up = down.to(x.dtype), up.to(x.dtype)
        inner = rows @ low_down.t()
        result = nn.functional.linear(rows, weight, bias).addmm_(inner, low_up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, low_down, low_up)
        ctx.weight, ctx.scale, ctx.kinds = weight, scale, (down.dtype, up.dtype)
        return result.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, low_down, low_up = ctx.saved_tensors
        upper = gradients[0].reshape(-1, gradients[0].shape[-1])
        lower = _scaled(upper, low_up, ctx.scale)
        by_x = by_down = by_up = None
        if ctx.needs_input_grad[0]:
            by_x = (upper @ ctx.weight).addmm_(lower, low_down).view(x.shape)
        if ctx.needs_input_grad[3]:
            by_down = (lower.t() @ x.reshape(-1, x.shape[-1])).to(ctx.kinds[0])
        if ctx.needs_input_grad[4]:
            by_up = _scaled(upper.t(), inner, ctx.scale).to(ctx.kinds[1])
        return by_x, None, None, by_down, by_up, None


def _scaled(first: torch.Tensor, second: torch.Tensor, scale: float) -> torch.Tensor:
    """``scale first second`` in one kernel."""
    return first.new_empty(first.shape[0], second.shape[1]).addmm_(first, second, beta=0, alpha=scale)
