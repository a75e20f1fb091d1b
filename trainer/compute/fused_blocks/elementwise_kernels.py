"""Triton kernels for GEGLU, and for sums of two images and a bias. Imports torch and triton: import this module late."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .kernel_launch import start_kernel

_BLOCK = 1024  # numbers for one program of an elementwise kernel


def geglu(projected: torch.Tensor) -> torch.Tensor:
    """``first * gelu(second)`` of the halves of ``projected`` (..., 2 width); (..., width)."""
    result: torch.Tensor = _Geglu.apply(projected)  # type: ignore[no-untyped-call]
    return result


def add(first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``first + second + bias`` for channels-last images and ``bias`` (channels,)."""
    result: torch.Tensor = _Add.apply(first, second, bias)  # type: ignore[no-untyped-call]
    return result


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        projected = projected.contiguous()
        width = projected.shape[-1] // 2
        y = projected.new_empty(*projected.shape[:-1], width)
        start_kernel(_geglu_forward, (triton.cdiv(y.numel(), _BLOCK),), projected, y, y.numel(), width, BLOCK=_BLOCK)
        ctx.save_for_backward(projected)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (projected,) = ctx.saved_tensors
        dy, dx = gradients[0].contiguous(), torch.empty_like(projected)
        _geglu_backward[(triton.cdiv(dy.numel(), _BLOCK),)](projected, dy, dx, dy.numel(), projected.shape[-1] // 2, BLOCK=_BLOCK)
        return dx


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        first, second = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (first, second))
        y = torch.empty_like(first)
        grid = (triton.cdiv(y.numel(), _BLOCK),)
        start_kernel(
            _add_bias, grid, first, second, y if bias is None else bias, y, y.numel(), y.shape[1], BLOCK=_BLOCK, BIASED=bias is not None
        )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0], gradients[0], None


@triton.jit
def _halves(projected, start, count, width, BLOCK: tl.constexpr):
    """Offsets in the result, their mask, the offsets of their first factors, and both factors."""
    at = start + tl.arange(0, BLOCK)
    there = at < count
    where = (at // width) * 2 * width + at % width
    first = tl.load(projected + where, mask=there, other=0.0).to(tl.float32)
    second = tl.load(projected + where + width, mask=there, other=0.0).to(tl.float32)
    return at, there, where, first, second


@triton.jit
def _geglu_forward(projected, y, count, width, BLOCK: tl.constexpr):
    at, there, _, first, second = _halves(projected, tl.program_id(0).to(tl.int64) * BLOCK, count, width, BLOCK)
    gelu = 0.5 * second * (1.0 + tl.erf(second * 0.7071067811865476))
    tl.store(y + at, (first * gelu).to(y.dtype.element_ty), mask=there)


@triton.jit
def _geglu_backward(projected, dy, dx, count, width, BLOCK: tl.constexpr):
    at, there, where, first, second = _halves(projected, tl.program_id(0).to(tl.int64) * BLOCK, count, width, BLOCK)
    gradient = tl.load(dy + at, mask=there, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(second * 0.7071067811865476))  # the normal distribution
    density = 0.3989422804014327 * tl.exp(-0.5 * second * second)
    tl.store(dx + where, (gradient * second * below).to(dx.dtype.element_ty), mask=there)
    tl.store(dx + where + width, (gradient * first * (below + second * density)).to(dx.dtype.element_ty), mask=there)


@triton.jit
def _add_bias(first, second, bias, y, count, channels, BLOCK: tl.constexpr, BIASED: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    value = tl.load(first + at, mask=there, other=0.0).to(tl.float32) + tl.load(second + at, mask=there, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + at % channels, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=there)
