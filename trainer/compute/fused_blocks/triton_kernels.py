"""Triton kernels for the operations of a UNet between its matrix products. Imports torch and triton: import this module late.

torch's GroupNorm on a GPU needs images plane by plane, and the convolutions' tensor cores need them channels last, so that every GroupNorm
copies its input twice; under autocast it also writes fp32. These kernels read and write channels last in the dtype of the input, compute in
fp32, and apply the activation in the same pass. They compute gradients of the input only, since the weights are frozen.

Images are (batch, channels, height, width), channels last; ``rows`` are the same as (batch, height * width, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from ...core.diagnosis import first_line
from ..self_check import functions_agree

_ROWS, _CHANNELS = 64, 64  # of a tile
_TILES = 16  # whose sums are added at once
_BLOCK = 1024  # numbers for one program of an elementwise kernel


def group_norm(x: torch.Tensor, norm: nn.GroupNorm, *, silu: bool, shift: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """``x``, and ``norm`` of ``x + shift``, with SiLU if asked for. ``x`` (batch, channels, height, width), ``shift`` (batch, channels).

    Where the returned ``x`` is used as well, the kernel adds the gradients of both.
    """
    passed, normed = _GroupNorm.apply(x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, silu)  # type: ignore[no-untyped-call]
    return passed, normed


def layer_norm(x: torch.Tensor, residual: torch.Tensor | None, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + residual``, and ``norm`` of it: both (..., width). The kernel adds the gradients of both."""
    total, normed = _LayerNorm.apply(x, residual, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, normed


def geglu(projected: torch.Tensor) -> torch.Tensor:
    """``first * gelu(second)`` of the halves of ``projected`` (..., 2 width); (..., width)."""
    result: torch.Tensor = _Geglu.apply(projected)  # type: ignore[no-untyped-call]
    return result


def add(first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``first + second + bias`` for channels-last images and ``bias`` (channels,)."""
    result: torch.Tensor = _Add.apply(first, second, bias)  # type: ignore[no-untyped-call]
    return result


def kernel_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Compares every kernel, forward and backward, with torch; returns the problem, or "". A driver or a compiler can fail in any way."""
    try:
        generator = torch.Generator().manual_seed(0)

        def both(results: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return results[0] + results[1]

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        norm = nn.GroupNorm(4, 48, device=device, dtype=dtype).requires_grad_(False)
        norm.weight.copy_(1 + random(48) / 4)
        norm.bias.copy_(random(48))
        image, other, shift = random(2, 48, 9, 8), random(2, 48, 9, 8), random(2, 48)
        image, other = (tensor.to(memory_format=torch.channels_last) for tensor in (image, other))
        wide, silu = random(3, 5, 96), nn.functional.silu
        lines = nn.LayerNorm(96, device=device, dtype=dtype).requires_grad_(False)
        lines.weight.copy_(1 + random(96) / 4)
        lines.bias.copy_(random(96))
        pairs: list[tuple[torch.Tensor, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = [
            (image, lambda x: group_norm(x, norm, silu=True, shift=shift)[1], lambda x: silu(norm(x + shift[..., None, None]))),
            (image, lambda x: both(group_norm(x, norm, silu=False)), lambda x: x + norm(x)),
            (wide, lambda x: both(layer_norm(x, wide, lines)), lambda x: x + wide + lines(x + wide)),
            (image, lambda x: add(x, other, shift[0]), lambda x: x + other + shift[0][:, None, None]),
            (wide, geglu, lambda x: x.chunk(2, -1)[0] * nn.functional.gelu(x.chunk(2, -1)[1])),
        ]
        for inputs, ours, plain in pairs:
            if not functions_agree(ours, plain, [inputs], 0.02):
                return "its results are not torch's"
    except Exception as error:
        return first_line(error)
    return ""


def _start(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *arguments: Any, **constants: Any) -> None:
    """Start a forward kernel, whose first argument is ``x``. On the meta device, where memory is estimated, nothing is computed."""
    if not x.is_meta:
        kernel[grid](x, *arguments, **constants)


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
        _start(_moments, grid, x, partial[0], partial[1], pixels, channels, tiles, ROWS=_ROWS, CHANNELS=_CHANNELS)
        # for each image and channel: factor, offset and centre, so that y = (x * factor) + offset
        affine = x.new_empty(3, batch, channels, dtype=torch.float32)
        spread = x.new_empty(batch, groups, dtype=torch.float32)
        _start(
            _coefficients, (groups, batch),
            partial[0], partial[1], weight, bias, x if shift is None else shift.contiguous(), affine[0], affine[1], affine[2], spread,
            pixels, channels, tiles, channels // groups, eps,
            WIDTH=_by_group(channels // groups), TILES=_TILES, ROWS=_ROWS, SHIFTED=shift is not None,
        )  # fmt: skip
        y = torch.empty_like(x)
        _start(_normalise, grid, x, y, affine[0], affine[1], pixels, channels, ROWS=_ROWS, CHANNELS=_CHANNELS, SILU=silu)
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
        _start(
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


def _by_group(channels: int) -> int:
    """Lanes for the channels of a group: the same number for nearly all groups, so that few kernels are compiled."""
    return max(128, int(triton.next_power_of_2(channels)))


def _by_row(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile for kernels whose programs hold whole rows."""
    whole = triton.next_power_of_2(width)
    rows = max(1, 2048 // whole)
    return (triton.cdiv(count, rows),), {"ROWS": rows, "WIDTH": whole}


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        projected = projected.contiguous()
        width = projected.shape[-1] // 2
        y = projected.new_empty(*projected.shape[:-1], width)
        _start(_geglu_forward, (triton.cdiv(y.numel(), _BLOCK),), projected, y, y.numel(), width, BLOCK=_BLOCK)
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
        _start(_add_bias, grid, first, second, y if bias is None else bias, y, y.numel(), y.shape[1], BLOCK=_BLOCK, BIASED=bias is not None)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0], gradients[0], None


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


# The kernels below are specialised by ``count``: if it is a multiple of 16, a thread reads and writes 16 bytes at once, not two.


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
