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
from .prepacked import MatrixProduct, PrepackedLinear, PrepackedPointwise

# Numbers that the LoRA of one layer reads and writes. On two cores with AVX-512 BF16, with AMX and without, all its products took 0.08 ms
# in fp32 and 0.19 in bf16 for 41,000 (16 tokens, 1280 to 1280 channels), as long for 164,000 (256, 320 to 320), and 1.1 and 0.4 to 0.6 ms
# for 737,000 (256, 320 to 2560).
_SMALL = 2**17


class FoldedLinear(peft_layer.Linear):  # type: ignore[misc]
    """peft's LoRA layer around a frozen Linear. What it does not fold (dropout, a base in fewer bits, LoRA switched off) peft computes."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) to (..., out), in the dtype of ``x`` or of autocast."""
        if args or kwargs or not _plain(self):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        return _folded(x, [self])[0]


class FoldedPointwise(peft_layer.Conv2d):  # type: ignore[misc]
    """peft's LoRA layer around a frozen 1 x 1 convolution, which is a matrix product where pictures lie channels last.

    On a CPU they are brought there: what it computes is channels last.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height, width), in the dtype of ``x`` or of autocast."""
        last = x.device.type == "cpu" or x.is_contiguous(memory_format=torch.channels_last)  # bringing it there is cheap on a CPU
        if args or kwargs or not _plain(self) or not last:
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
    results: Any = outside_autocast(x, lambda given: _Folded.apply(given, scales, *tensors))  # type: ignore[no-untyped-call]
    return list(results)


def _plain(layer: Any) -> bool:
    """Whether LoRA is switched on in ``layer``, alone, and drops nothing out."""
    (name,) = layer.lora_A  # ``fold`` has seen to it
    drops = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    return not (drops or layer.disable_adapters or layer.merged) and layer.active_adapters == [name]


def _parts(layer: Any) -> tuple[Any, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
    """Weight (out, in) or the layer that has it in blocks, bias, down (rank, in), up (out, rank), scale."""
    base, (name,) = layer.base_layer, layer.lora_A
    down, up = (low(kept.weight).flatten(1) for kept in (layer.lora_A[name], layer.lora_B[name]))
    return base if isinstance(base, MatrixProduct) else low(base.weight).flatten(1), base.bias, down, up, layer.scaling[name]


def fold(layer: Any) -> None:
    """Make ``layer`` fold what it computes if it is peft's plain LoRA on a frozen Linear or 1 x 1 convolution; else leave it."""
    if len(layer.lora_A) != 1 or getattr(layer, "lora_variant", None):
        return
    base, kind = layer.base_layer, None
    if type(layer) is peft_layer.Linear and type(base) in (nn.Linear, PrepackedLinear):
        kind = FoldedLinear
    elif type(layer) is peft_layer.Conv2d and type(base) in (nn.Conv2d, PrepackedPointwise) and _is_product(base):
        kind = FoldedPointwise
    if kind is not None and not base.weight.requires_grad:  # asked last: a base in fewer bits would unpack it for the question
        layer.__class__ = kind


def _is_product(convolution: nn.Conv2d) -> bool:
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.groups)
    return shape == ((1, 1), (1, 1), (0, 0), 1)


class _Folded(torch.autograd.Function):
    """For each of several layers ``x W' + b + scale x D' U'``, with W (out, in), D (rank, in), U (out, rank): what LoRA and the backward
    pass read of ``x`` is read once.

    ``parts``: weight (or the layer that has it in blocks), bias, down and up of each layer. W and b are cast to the dtype of ``x``, D and U
    to that in which LoRA's products are computed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: list[float], *parts: Any) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        weights, biases, downs, ups = (parts[place::4] for place in range(4))
        weights = tuple(weight if isinstance(weight, MatrixProduct) else weight.to(x.dtype) for weight in weights)
        kind = _lora_dtype(rows, max(len(up) for up in ups))
        downs, ups = tuple(down.to(kind) for down in downs), tuple(up.to(kind) for up in ups)
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        inner = rows.to(kind) @ down.t()
        results = []
        inners = _split(inner, [len(one) for one in downs])
        for weight, bias, part, up, scale in zip(weights, biases, inners, ups, scales, strict=True):
            total = _product(rows, weight, bias, derives=ctx.needs_input_grad[0])
            results.append(_add_product(total, part, up.t(), scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x, inner, down, *ups)
        ctx.weights, ctx.scales, ctx.kinds = weights, scales, [getattr(part, "dtype", None) for part in parts]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, down, *ups = ctx.saved_tensors
        rows, uppers, sizes = x.reshape(-1, x.shape[-1]), [one.reshape(-1, one.shape[-1]) for one in gradients], [up.shape[1] for up in ups]
        kind, lower = inner.dtype, inner.new_empty(inner.shape)
        highs = [upper.to(kind) for upper in uppers]
        for place, upper, up, scale in zip(_split(lower, sizes), highs, ups, ctx.scales, strict=True):
            place.addmm_(upper, up, beta=0, alpha=scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            for upper, weight in zip(uppers, ctx.weights, strict=True):
                by_x = _add_derivative(by_x, upper, weight, x.shape)
            assert by_x is not None
            by_x = _add_product(by_x, lower, down).view(x.shape)
        needed = [ctx.needs_input_grad[2 + place] for place in range(len(ctx.kinds))]
        found: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed[2::4]):
            found[2::4] = _split(lower.t() @ rows.to(kind), sizes, 0)
        for number, (upper, part, scale) in enumerate(zip(highs, _split(inner, sizes), ctx.scales, strict=True)):
            if needed[4 * number + 3]:
                found[4 * number + 3] = upper.new_empty(upper.shape[1], part.shape[1]).addmm_(upper.t(), part, beta=0, alpha=scale)
        return by_x, None, *(None if each is None else each.to(kind) for each, kind in zip(found, ctx.kinds, strict=True))


def _lora_dtype(rows: torch.Tensor, width: int) -> torch.dtype:
    """What LoRA's products of ``rows`` (n, in) to ``width`` are computed in.

    A CPU does small ones sooner in fp32: oneDNN, which does those in half precision, takes longer to start than they to finish.
    """
    small = rows.device.type == "cpu" and rows.numel() + len(rows) * width <= _SMALL
    return torch.float32 if small else rows.dtype


def _product(rows: torch.Tensor, weight: Any, bias: torch.Tensor | None, *, derives: bool) -> torch.Tensor:
    """``rows`` (n, in) to (n, out), in their dtype. ``derives``: their derivative will be asked for."""
    if isinstance(weight, MatrixProduct):
        return weight.product(rows, derives=derives)
    return nn.functional.linear(rows, weight, None if bias is None else bias.to(rows.dtype))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """``total`` after adding ``left`` times ``right`` to it."""
    return total.addmm_(left, right, alpha=scale) if left.dtype == total.dtype else total.add_(left @ right, alpha=scale)


def _add_derivative(total: torch.Tensor | None, upper: torch.Tensor, weight: Any, shape: torch.Size) -> torch.Tensor:
    """``total`` (n, in) and the product of ``upper`` (n, out) with a weight."""
    if isinstance(weight, MatrixProduct):
        part = weight.input_gradient(torch.Size((len(upper), shape[-1])), upper)
        return part if total is None else total.add_(part)
    return upper @ weight if total is None else total.addmm_(upper, weight)


def _split(tensor: torch.Tensor, sizes: list[int], dim: int = 1) -> list[torch.Tensor]:
    return [tensor] if len(sizes) == 1 else list(tensor.split(sizes, dim))
