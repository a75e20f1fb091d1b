"""Triton kernels for GroupNorm. Imports torch and triton: import this module late.

torch's GroupNorm on a GPU needs images plane by plane, and the convolutions' tensor cores need them channels last, so that every GroupNorm
copies its input twice; under autocast it also writes fp32. These kernels read and write channels last in the dtype of the input, compute in
fp32, and apply the activation in the same pass. They compute gradients of the input only, since the weights are frozen.

Images are (batch, channels, height, width), channels last; ``rows`` are the same as (batch, height * width, channels).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from .kernel_launch import start_kernel

_ROWS, _CHANNELS = 64, 64  # of a tile
_TILES = 16  # whose sums are added at once


def group_norm(x: torch.Tensor, norm: nn.GroupNorm, *, silu: bool, shift: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """``x``, and ``norm`` of ``x + shift``, with SiLU if asked for. ``x`` (batch, channels, height, width), ``shift`` (batch, channels).

    Where the returned ``x`` is used as well, the kernel adds the gradients of both.
    """
    passed, normed = _GroupNorm.apply(x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, silu)  # type: ignore[no-untyped-call]
    return passed, normed


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        shift: torch.Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        pixels, tiles = height * width, triton.cdiv(height * width, _ROWS)
        partial = x.new_empty(2, batch, tiles, channels, dtype=torch.float32)
        grid = (tiles, batch, triton.cdiv(channels, _CHANNELS))
        start_kernel(_moments, grid, x, partial[0], partial[1], pixels, channels, tiles, ROWS=_ROWS, CHANNELS=_CHANNELS)
        # for each image and channel: factor, offset and centre, so that y = (x * factor) + offset
        affine = x.new_empty(3, batch, channels, dtype=torch.float32)
        spread = x.new_empty(batch, groups, dtype=torch.float32)
        start_kernel(
            _coefficients, (groups, batch),
            partial[0], partial[1], weight, bias, x if shift is None else shift.contiguous(), affine[0], affine[1], affine[2], spread,
            pixels, channels, tiles, channels // groups, eps,
            WIDTH=_by_group(channels // groups), TILES=_TILES, ROWS=_ROWS, SHIFTED=shift is not None,
        )  # fmt: skip
        y = torch.empty_like(x)
        start_kernel(_normalise, grid, x, y, affine[0], affine[1], pixels, channels, ROWS=_ROWS, CHANNELS=_CHANNELS, SILU=silu)
        ctx.save_for_backward(x, affine, spread, weight)
        ctx.silu, ctx.groups = silu, groups
        ctx.set_materialize_grads(False)
        return x.view_as(x), y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x, affine, spread, weight = ctx.saved_tensors
        passed, by_y = gradients
        if by_y is None:
            return passed, None, None, None, None, None, None
        dy = by_y.contiguous(memory_format=torch.channels_last)
        more = dy if passed is None else passed.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        pixels, tiles = height * width, triton.cdiv(height * width, _ROWS)
        partial = x.new_empty(2, batch, tiles, channels, dtype=torch.float32)
        grid = (tiles, batch, triton.cdiv(channels, _CHANNELS))
        shared: dict[str, Any] = {"ROWS": _ROWS, "CHANNELS": _CHANNELS, "SILU": ctx.silu}
        _backward_sums[grid](x, dy, affine[0], affine[1], affine[2], partial[0], partial[1], pixels, channels, tiles, **shared)
        terms = x.new_empty(2, batch, channels, dtype=torch.float32)
        size = channels // ctx.groups
        _backward_terms[(ctx.groups, batch)](
            partial[0], partial[1], weight, spread, terms[0], terms[1], pixels, channels, tiles, size,
            WIDTH=_by_group(size), TILES=_TILES,
        )  # fmt: skip
        dx = torch.empty_like(x)
        _backward_apply[grid](
            x, dy, more, dx, affine[0], affine[1], affine[2], terms[0], terms[1], pixels, channels, **shared, MORE=passed is not None
        )
        return dx, None, None, None, None, None, None


def _by_group(channels: int) -> int:
    """Lanes for the channels of a group: the same number for nearly all groups, so that few kernels are compiled."""
    return max(128, int(triton.next_power_of_2(channels)))


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows and channels of a tile of (batch, pixels, channels), mask, offsets, and the channels' offsets in (batch, channels)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    there = (row < pixels)[:, None] & (channel < channels)[None, :]
    image = tl.program_id(1).to(tl.int64)
    where = (image * pixels + row)[:, None] * channels + channel[None, :]
    return row, channel, there, where, image * channels + channel


@triton.jit(do_not_specialize=["pixels", "tiles"])
def _moments(x, means, squares, pixels, channels, tiles, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean, and sum of squared distances from it, for each channel of a tile."""
    _, channel, there, where, _ = _tile(pixels, channels, ROWS, CHANNELS)
    value = tl.load(x + where, mask=there, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - tl.program_id(0) * ROWS, ROWS)
    mean = tl.sum(value, 0) / count
    apart = tl.where(there, value - mean[None, :], 0.0)
    out = (tl.program_id(1) * tiles + tl.program_id(0)).to(tl.int64) * channels + channel
    tl.store(means + out, mean, mask=channel < channels)
    tl.store(squares + out, tl.sum(apart * apart, 0), mask=channel < channels)


@triton.jit
def _group(channels, group, WIDTH: tl.constexpr):
    """Channels of a program's group, their mask, and their offsets in (batch, channels)."""
    lane = tl.arange(0, WIDTH)
    channel = tl.program_id(0) * group + lane
    return channel, lane < group, tl.program_id(1) * channels + channel


@triton.jit
def _some_tiles(first, tiles, channels, channel, inside, TILES: tl.constexpr):
    """Some tiles of a program's image, their mask, and the offsets of their sums for ``channel`` in (batch, tiles, channels)."""
    tile = first + tl.arange(0, TILES)
    at = (tl.program_id(1) * tiles + tile)[:, None] * channels + channel[None, :]
    return tile, (tile < tiles)[:, None] & inside[None, :], at


@triton.jit(do_not_specialize=["pixels", "tiles", "group"])
def _coefficients(
    means, squares, weight, bias, shift, factor, offset, centre, spread, pixels, channels, tiles, group, eps,
    WIDTH: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """A group's mean and inverse deviation from those of its tiles (Chan, Golub, LeVeque 1979), and factor and offset of each channel."""
    channel, inside, out = _group(channels, group, WIDTH)
    moved = tl.zeros([WIDTH], tl.float32)
    if SHIFTED:
        moved = tl.load(shift + out, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([TILES, WIDTH], tl.float32)
    for first in range(0, tiles, TILES):
        tile, known, at = _some_tiles(first, tiles, channels, channel, inside, TILES)
        count = tl.minimum(pixels - tile * ROWS, ROWS).to(tl.float32)[:, None]
        total += tl.where(known, count * (tl.load(means + at, mask=known, other=0.0) + moved[None, :]), 0.0)
    amount = pixels.to(tl.float32) * group
    mean = tl.sum(total) / amount
    total = tl.zeros([TILES, WIDTH], tl.float32)
    for first in range(0, tiles, TILES):
        tile, known, at = _some_tiles(first, tiles, channels, channel, inside, TILES)
        count = tl.minimum(pixels - tile * ROWS, ROWS).to(tl.float32)[:, None]
        apart = tl.load(means + at, mask=known, other=0.0) + moved[None, :] - mean
        total += tl.where(known, tl.load(squares + at, mask=known, other=0.0) + count * apart * apart, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(total) / amount + eps)
    slope = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * inverse
    tl.store(factor + out, slope, mask=inside)
    tl.store(centre + out, mean - moved, mask=inside)
    tl.store(offset + out, tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) + (moved - mean) * slope, mask=inside)
    tl.store(spread + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), inverse)


@triton.jit(do_not_specialize=["pixels"])
def _normalise(x, y, factor, offset, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr):
    _, channel, there, where, at = _tile(pixels, channels, ROWS, CHANNELS)
    slope = tl.load(factor + at, mask=channel < channels, other=0.0)
    shift = tl.load(offset + at, mask=channel < channels, other=0.0)
    value = tl.load(x + where, mask=there, other=0.0).to(tl.float32) * slope[None, :] + shift[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + where, value.to(y.dtype.element_ty), mask=there)


@triton.jit
def _before_silu(x, dy, where, there, slope, shift, SILU: tl.constexpr):
    """The input, and the gradient of the activation's input."""
    value = tl.load(x + where, mask=there, other=0.0).to(tl.float32)
    gradient = tl.load(dy + where, mask=there, other=0.0).to(tl.float32)
    if SILU:
        normed = value * slope[None, :] + shift[None, :]
        gate = tl.sigmoid(normed)
        gradient = gradient * gate * (1.0 + normed * (1.0 - gate))
    return value, gradient


@triton.jit(do_not_specialize=["pixels", "tiles"])
def _backward_sums(
    x, dy, factor, offset, centre, sums, products, pixels, channels, tiles, ROWS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr
):
    """For each channel of a tile, the sums of the gradient and of its product with the centred input."""
    _, channel, there, where, at = _tile(pixels, channels, ROWS, CHANNELS)
    inside = channel < channels
    slope, shift = tl.load(factor + at, mask=inside, other=0.0), tl.load(offset + at, mask=inside, other=0.0)
    value, gradient = _before_silu(x, dy, where, there, slope, shift, SILU)
    middle = tl.load(centre + at, mask=inside, other=0.0)
    out = (tl.program_id(1) * tiles + tl.program_id(0)).to(tl.int64) * channels + channel
    tl.store(sums + out, tl.sum(gradient, 0), mask=inside)
    tl.store(products + out, tl.sum(gradient * (value - middle[None, :]), 0), mask=inside)


@triton.jit(do_not_specialize=["pixels", "tiles", "group"])
def _backward_terms(
    sums, products, weight, spread, constant, linear, pixels, channels, tiles, group, WIDTH: tl.constexpr, TILES: tl.constexpr
):
    """The terms of the gradient from a group's mean and deviation: a constant, and a factor of the centred input."""
    channel, inside, out = _group(channels, group, WIDTH)
    first_total = tl.zeros([TILES, WIDTH], tl.float32)
    second_total = tl.zeros([TILES, WIDTH], tl.float32)
    for first in range(0, tiles, TILES):
        _, known, at = _some_tiles(first, tiles, channels, channel, inside, TILES)
        first_total += tl.load(sums + at, mask=known, other=0.0)
        second_total += tl.load(products + at, mask=known, other=0.0)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    inverse = tl.load(spread + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0))
    amount = pixels.to(tl.float32) * group
    nothing = tl.zeros([WIDTH], tl.float32)
    tl.store(constant + out, nothing - inverse * tl.sum(first_total * scale) / amount, mask=inside)
    tl.store(linear + out, nothing - inverse * inverse * inverse * tl.sum(second_total * scale) / amount, mask=inside)


@triton.jit(do_not_specialize=["pixels"])
def _backward_apply(
    x, dy, more, dx, factor, offset, centre, constant, linear, pixels, channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    _, channel, there, where, at = _tile(pixels, channels, ROWS, CHANNELS)
    inside = channel < channels
    slope, shift = tl.load(factor + at, mask=inside, other=0.0), tl.load(offset + at, mask=inside, other=0.0)
    value, gradient = _before_silu(x, dy, where, there, slope, shift, SILU)
    middle = tl.load(centre + at, mask=inside, other=0.0)
    by_group = tl.load(linear + at, mask=inside, other=0.0)[None, :] * (value - middle[None, :])
    result = gradient * slope[None, :] + by_group + tl.load(constant + at, mask=inside, other=0.0)[None, :]
    if MORE:
        result += tl.load(more + where, mask=there, other=0.0).to(tl.float32)
    tl.store(dx + where, result.to(dx.dtype.element_ty), mask=there)
