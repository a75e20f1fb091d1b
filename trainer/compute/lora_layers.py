"""LoRA beside a frozen layer, and in few kernels where the layer is a Linear. Imports torch: import this module late.

Written out, ``base(x) + up(down(x)) * scale`` is mostly starting kernels on a fast GPU at batch 1, and every one of its parts is a node of
autograd. Here the base, LoRA and both derivatives are one function: scale and sum are done by the matrix products that need them anyway
(``addmm``). The layers are ours and not peft's, which computes the same, because to import peft is to import most of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .casting import CastingConv2d, CastingLinear, low, outside_autocast
from .onednn_layers import MatrixProduct, PrepackedLinear, PrepackedPointwise

# Numbers that the LoRA of one layer reads and writes. On two cores with AVX-512 BF16, with AMX and without, all its products took 0.08 ms
# in fp32 and 0.19 in bf16 for 41,000 (16 tokens, 1280 to 1280 channels), as long for 164,000 (256, 320 to 320), and 1.1 and 0.4 to 0.6 ms
# for 737,000 (256, 320 to 2560).
_SMALL = 2**17


class LoraLayer(nn.Module):
    """A frozen layer, ``base_layer``, and LoRA beside it, whose matrices have the names that peft gives them: ``lora_A`` and ``lora_B``.

    They are fp32, down Kaiming-uniform, up zero (Hu et al. 2021, section 4.1), and compute in the dtype of the input: see casting.py.
    """

    def __init__(self, base: Any, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.lora_A, self.lora_B = self._matrices(base, rank)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # as LoRA's own code and kohya's trainer do
        nn.init.zeros_(self.lora_B.weight)
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def _matrices(self, base: Any, rank: int) -> tuple[Any, Any]:
        raise NotImplementedError

    @property
    def weight(self) -> Any:
        """The base's, for whoever takes this for the layer that it stands for, as peft's layers have it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base's."""
        return self.base_layer.bias

    @property
    def drops(self) -> bool:
        """Whether LoRA does not see all of an input now."""
        return self.training and not isinstance(self.lora_dropout, nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the base makes of ``x``, and LoRA's part, in the base's dtype."""
        result: torch.Tensor = self.base_layer(x)
        part = self.lora_B(self.lora_A(self.lora_dropout(x)))
        return torch.add(result, part * self.scale).to(result.dtype)


class LoraLinear(LoraLayer):
    """LoRA beside a Linear."""

    def _matrices(self, base: Any, rank: int) -> tuple[Any, Any]:
        return CastingLinear(base.in_features, rank, bias=False), CastingLinear(rank, base.out_features, bias=False)


class LoraConv2d(LoraLayer):
    """LoRA beside a convolution: down is a convolution of the base's kind, up one of single pixels."""

    def _matrices(self, base: Any, rank: int) -> tuple[Any, Any]:
        down = CastingConv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)
        return down, CastingConv2d(rank, base.out_channels, 1, bias=False)


class FoldedLinear(LoraLinear):
    """LoRA and a Linear in one function, where nothing is dropped out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), in the dtype of ``x`` or of autocast."""
        return super().forward(x) if self.drops else _folded(x, [self])[0]


class FoldedPointwise(LoraConv2d):
    """The same for a 1 x 1 convolution, which is a matrix product where pictures lie channels last.

    On a CPU they are brought there: what it computes is channels last.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height, width), in the dtype of ``x`` or of autocast."""
        last = x.device.type == "cpu" or x.is_contiguous(memory_format=torch.channels_last)  # bringing it there is cheap on a CPU
        if self.drops or not last:
            return super().forward(x)
        return _folded(x.permute(0, 2, 3, 1), [self])[0].permute(0, 3, 1, 2)


def with_lora(base: nn.Module, rank: int, scale: float, dropout: float) -> LoraLayer:
    """``base`` with LoRA of its kind: folded where its weight lies as it was or in oneDNN's blocks, not in fewer bits."""
    kind: type[LoraLayer]
    if isinstance(base, nn.Linear):
        kind = FoldedLinear if type(base) in (nn.Linear, PrepackedLinear) else LoraLinear
    else:
        assert isinstance(base, nn.Conv2d) and base.dilation == (1, 1) and base.groups == 1
        product = type(base) in (nn.Conv2d, PrepackedPointwise) and _is_product(base)
        kind = FoldedPointwise if product else LoraConv2d
    return kind(base, rank, scale, dropout)


def together(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    """What each of ``layers``, with LoRA folded or without, makes of the same ``x`` (..., in)."""
    if not all(isinstance(layer, FoldedLinear) and not layer.drops for layer in layers):
        return [layer(x) for layer in layers]
    return _folded(x, layers)


def _folded(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    parts = [_parts(layer) for layer in layers]
    scales, tensors = [scale for *_, scale in parts], [tensor for *tensors, _ in parts for tensor in tensors]
    results: Any = outside_autocast(x, lambda given: _Folded.apply(given, scales, *tensors))  # type: ignore[no-untyped-call]
    return list(results)


def _parts(layer: Any) -> tuple[Any, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
    """Weight (out, in) or the layer that has it in blocks, bias, down (rank, in), up (out, rank), scale."""
    base = layer.base_layer
    down, up = (low(kept.weight).flatten(1) for kept in (layer.lora_A, layer.lora_B))
    return base if isinstance(base, MatrixProduct) else low(base.weight).flatten(1), base.bias, down, up, layer.scale


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
