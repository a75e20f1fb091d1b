"""LoRA on a frozen Linear in few kernels. Imports torch and peft: import this module late.

peft computes ``base(x) + up(down(x)) * scale`` as written: on a fast GPU at batch 1 most of that is starting kernels, and every one of
its parts is a node of autograd. Here the base, LoRA and both derivatives are one function: scale and sum are done by the matrix
products that need them anyway (``addmm``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

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
        return _folded(x, [self])[0]


class FoldedPointwise(peft_layer.Conv2d):  # type: ignore[misc]
    """peft's LoRA layer around a frozen 1 x 1 convolution, which is a matrix product where pictures lie channels last."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height, width), in the dtype of ``x`` or of autocast."""
        if args or kwargs or not _plain(self) or not x.is_contiguous(memory_format=torch.channels_last):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        return _folded(x.permute(0, 2, 3, 1), [self])[0].permute(0, 3, 1, 2)


def together(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    """What each of ``layers``, with LoRA folded or without, makes of the same ``x`` (..., in)."""
    if not all(isinstance(layer, FoldedLinear) and _plain(layer) for layer in layers):
        return [layer(x) for layer in layers]
    return _folded(x, layers)


def _folded(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    parts = [_parts(layer) for layer in layers]
    scales, tensors = [scale for *_, scale in parts], [tensor for *tensors, _ in parts for tensor in tensors]
    results: Any = outside_autocast(x, lambda rows: _Folded.apply(rows, scales, *tensors))  # type: ignore[no-untyped-call]
    return list(results)


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
    """For each of several layers ``x W' + b + scale x D' U'``, with W (out, in), D (rank, in), U (out, rank): D and U are cast to the
    dtype of ``x``, and what LoRA and the backward pass read of it is read once.

    ``tensors``: weight, bias, down and up of each layer.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: list[float], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        kept = [None if tensor is None else tensor.to(x.dtype) for tensor in tensors]
        weights, biases, downs, ups = (cast(list[torch.Tensor], kept[place::4]) for place in range(4))
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        inner = rows @ down.t()
        results = []
        parts = _split(inner, [len(one) for one in downs])
        for weight, bias, part, up, scale in zip(weights, biases, parts, ups, scales, strict=True):
            result = nn.functional.linear(rows, weight, bias).addmm_(part, up.t(), alpha=scale)
            results.append(result.view(*x.shape[:-1], -1))
        ctx.save_for_backward(x, inner, down, *ups)
        ctx.weights, ctx.scales, ctx.kinds = weights, scales, [None if tensor is None else tensor.dtype for tensor in tensors]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, down, *ups = ctx.saved_tensors
        uppers, sizes = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients], [up.shape[1] for up in ups]
        lower = inner.new_empty(inner.shape)
        for place, upper, up, scale in zip(_split(lower, sizes), uppers, ups, ctx.scales, strict=True):
            place.addmm_(upper, up, beta=0, alpha=scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = uppers[0] @ ctx.weights[0]
            for upper, weight in zip(uppers[1:], ctx.weights[1:], strict=True):
                by_x.addmm_(upper, weight)
            by_x = by_x.addmm_(lower, down).view(x.shape)
        needed = [ctx.needs_input_grad[2 + place] for place in range(len(ctx.kinds))]
        found: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed[2::4]):
            found[2::4] = _split(lower.t() @ x.reshape(-1, x.shape[-1]), sizes, 0)
        for number, (upper, part, scale) in enumerate(zip(uppers, _split(inner, sizes), ctx.scales, strict=True)):
            if needed[4 * number + 3]:
                found[4 * number + 3] = upper.new_empty(upper.shape[1], part.shape[1]).addmm_(upper.t(), part, beta=0, alpha=scale)
        return by_x, None, *(None if each is None else each.to(kind) for each, kind in zip(found, ctx.kinds, strict=True))


def _split(tensor: torch.Tensor, sizes: list[int], dim: int = 1) -> list[torch.Tensor]:
    return [tensor] if len(sizes) == 1 else list(tensor.split(sizes, dim))
