"""LoRA on a frozen Linear in few kernels. Imports torch and peft: import this module late.

peft computes ``base(x) + up(down(x)) * scale`` as written: on a fast GPU at batch 1 most of that is starting kernels, and every one of
its parts is a node of autograd. Here the base, LoRA and both derivatives are one function: scale and sum are done by the matrix
products that need them anyway (``addmm``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import layer as peft_layer
from torch import nn

from .casting import low, outside_autocast


class FoldedLinear(peft_layer.Linear):  # type: ignore[misc]
    """peft's LoRA layer around a frozen Linear. What it does not fold (dropout, a packed base, LoRA switched off) peft computes."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) to (..., out), in the dtype of ``x`` or of autocast."""
        if args or kwargs or not _plain(self):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        return outside_autocast(x, lambda rows: _Folded.apply(rows, *_parts(self)))  # type: ignore[no-untyped-call]


class FoldedPointwise(peft_layer.Conv2d):  # type: ignore[misc]
    """peft's LoRA layer around a frozen 1 x 1 convolution, which is a matrix product where pictures lie channels last."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height, width), in the dtype of ``x`` or of autocast."""
        if args or kwargs or not _plain(self) or not x.is_contiguous(memory_format=torch.channels_last):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        folded = outside_autocast(x.permute(0, 2, 3, 1), lambda rows: _Folded.apply(rows, *_parts(self)))  # type: ignore[no-untyped-call]
        return folded.permute(0, 3, 1, 2)


def together(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    """What each of ``layers``, with LoRA folded or without, makes of the same ``x`` (..., in)."""
    if not all(isinstance(layer, FoldedLinear) and _plain(layer) for layer in layers):
        return [layer(x) for layer in layers]
    parts = [_parts(layer) for layer in layers]
    scales, tensors = [scale for *_, scale in parts], [tensor for *tensors, _ in parts for tensor in tensors]
    return list(outside_autocast(x, lambda rows: _Together.apply(rows, scales, *tensors)))  # type: ignore[no-untyped-call]


def _plain(layer: Any) -> bool:
    """Whether LoRA is switched on in ``layer``, alone, and drops nothing out."""
    (name,) = layer.lora_A  # ``fold`` has seen to it
    drops = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    return not (drops or layer.disable_adapters or layer.merged) and layer.active_adapters == [name]


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
    """Weight (out, in), bias, down (rank, in), up (out, rank), scale."""
    base, (name,) = layer.base_layer, layer.lora_A
    weight, down, up = (low(kept.weight).flatten(1) for kept in (base, layer.lora_A[name], layer.lora_B[name]))
    return weight, base.bias, down, up, layer.scaling[name]


def fold(layer: Any) -> None:
    """Make ``layer`` fold what it computes if it is peft's plain LoRA on a frozen Linear or 1 x 1 convolution; else leave it."""
    if len(layer.lora_A) != 1 or getattr(layer, "lora_variant", None):
        return
    base = layer.base_layer
    if type(layer) is peft_layer.Linear and type(base) is nn.Linear and not base.weight.requires_grad:
        layer.__class__ = FoldedLinear
    elif type(layer) is peft_layer.Conv2d and type(base) is nn.Conv2d and not base.weight.requires_grad and _is_product(base):
        layer.__class__ = FoldedPointwise


def _is_product(convolution: nn.Conv2d) -> bool:
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.groups)
    return shape == ((1, 1), (1, 1), (0, 0), 1)


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


class _Together(torch.autograd.Function):
    """``_Folded`` of several layers with the same input ``x``: what LoRA and the backward pass read of it is read once.

    ``tensors``: weight, bias, down and up of each layer.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: list[float], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        low = [None if tensor is None else tensor.to(x.dtype) for tensor in tensors]
        weights, biases, downs, ups = low[::4], low[1::4], low[2::4], low[3::4]
        down = torch.cat(downs)  # type: ignore[arg-type]
        inner = rows @ down.t()
        inners = inner.split([len(one) for one in downs], 1)  # type: ignore[arg-type]
        results = []
        for weight, bias, part, up, scale in zip(weights, biases, inners, ups, scales, strict=True):
            assert weight is not None and up is not None
            result = nn.functional.linear(rows, weight, bias).addmm_(part, up.t(), alpha=scale)
            results.append(result.view(*x.shape[:-1], -1))
        ctx.save_for_backward(x, inner, down, *ups)
        ctx.weights, ctx.scales, ctx.kinds = weights, scales, [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.needs_tensors = ctx.needs_input_grad[2:]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, down, *ups = ctx.saved_tensors
        rows, uppers = x.reshape(-1, x.shape[-1]), [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        sizes = [up.shape[1] for up in ups]
        lower = torch.empty_like(inner)
        for place, upper, up, scale in zip(lower.split(sizes, 1), uppers, ups, ctx.scales, strict=True):
            place.addmm_(upper, up, beta=0, alpha=scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = lower @ down
            for upper, weight in zip(uppers, ctx.weights, strict=True):
                by_x.addmm_(upper, weight)
            by_x = by_x.view(x.shape)
        found: list[torch.Tensor | None] = []
        by_down = (lower.t() @ rows).split(sizes)
        for number, (upper, part, scale) in enumerate(zip(uppers, inner.split(sizes, 1), ctx.scales, strict=True)):
            kinds, needed = ctx.kinds[4 * number : 4 * number + 4], ctx.needs_tensors[4 * number : 4 * number + 4]
            found += [None, None, by_down[number].to(kinds[2]) if needed[2] else None]
            found.append(_scaled(upper.t(), part, scale).to(kinds[3]) if needed[3] else None)
        return by_x, None, *found


def _scaled(first: torch.Tensor, second: torch.Tensor, scale: float) -> torch.Tensor:
    """``scale first second`` in one kernel."""
    return first.new_empty(first.shape[0], second.shape[1]).addmm_(first, second, beta=0, alpha=scale)
