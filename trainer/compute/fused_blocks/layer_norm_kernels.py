"""Triton kernels for LayerNorm with the residual before it. Imports torch and triton: import this module late.

They compute in fp32, and gradients of the input only, since the weights are frozen.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from .kernel_launch import start_kernel


def layer_norm(x: torch.Tensor, residual: torch.Tensor | None, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + residual``, and ``norm`` of it: both (..., width). The kernel adds the gradients of both."""
    total, normed = _LayerNorm.apply(x, residual, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, normed


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous()
        width = x.shape[-1]
        count = x.numel() // width
        y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
        means, spreads = x.new_empty(2, count, dtype=torch.float32)
        other = x if residual is None else residual.contiguous()
        grid, shape = _by_row(count, width)
        start_kernel(
            _layer_norm_forward, grid, x, other, weight, bias, total, y, means, spreads, count, width, eps,
            **shape, ADDS=residual is not None,
        )  # fmt: skip
        ctx.save_for_backward(total, weight, means, spreads)
        ctx.adds = residual is not None
        ctx.set_materialize_grads(False)
        return x.view_as(x) if residual is None else total, y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight, means, spreads = ctx.saved_tensors
        passed, by_y = gradients
        if by_y is None:
            return passed, passed if ctx.adds else None, None, None, None
        dy = by_y.contiguous()
        more, dx = dy if passed is None else passed.contiguous(), torch.empty_like(total)
        count, width = means.numel(), total.shape[-1]
        grid, shape = _by_row(count, width)
        _layer_norm_backward[grid](total, dy, more, weight, means, spreads, dx, count, width, **shape, MORE=passed is not None)
        return dx, dx if ctx.adds else None, None, None, None


def _by_row(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile for kernels whose programs hold whole rows."""
    whole = triton.next_power_of_2(width)
    rows = max(1, 2048 // whole)
    return (triton.cdiv(count, rows),), {"ROWS": rows, "WIDTH": whole}


@triton.jit
def _lines(count, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a program, their columns, their offsets and their mask."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    return row, column, row[:, None] * width + column[None, :], (row < count)[:, None] & (column < width)[None, :]


@triton.jit(do_not_specialize=["count"])
def _layer_norm_forward(
    x, residual, weight, bias, total, y, means, spreads, count, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDS: tl.constexpr
):
    row, column, where, there = _lines(count, width, ROWS, WIDTH)
    value = tl.load(x + where, mask=there, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(residual + where, mask=there, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)  # the residual's dtype
        tl.store(total + where, rounded, mask=there)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / width
    apart = tl.where(there, value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(apart * apart, 1) / width + eps)
    slope = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    normed = apart * inverse[:, None] * slope[None, :] + shift[None, :]
    tl.store(y + where, normed.to(y.dtype.element_ty), mask=there)
    tl.store(means + row, mean, mask=row < count)
    tl.store(spreads + row, inverse, mask=row < count)


@triton.jit(do_not_specialize=["count"])
def _layer_norm_backward(
    total, dy, more, weight, means, spreads, dx, count, width, ROWS: tl.constexpr, WIDTH: tl.constexpr, MORE: tl.constexpr
):
    row, column, where, there = _lines(count, width, ROWS, WIDTH)
    inverse = tl.load(spreads + row, mask=row < count, other=0.0)[:, None]
    mean = tl.load(means + row, mask=row < count, other=0.0)[:, None]
    normed = tl.where(there, (tl.load(total + where, mask=there, other=0.0).to(tl.float32) - mean) * inverse, 0.0)
    slope = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    gradient = tl.load(dy + where, mask=there, other=0.0).to(tl.float32) * slope
    along = (tl.sum(gradient * normed, 1) / width)[:, None]
    result = (gradient - normed * along - (tl.sum(gradient, 1) / width)[:, None]) * inverse
    if MORE:
        result += tl.load(more + where, mask=there, other=0.0).to(tl.float32)
    tl.store(dx + where, result.to(dx.dtype.element_ty), mask=there)
