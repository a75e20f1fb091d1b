"""LoRA beside a frozen layer, computed in few kernels where the layer is a matrix product. Imports torch: import this module late.

Written with plain operations, ``base(x) + up(down(x)) * scale`` spends most of its time on starting kernels on a fast GPU at batch size 1,
and every operation adds a node for autograd. The fused layers compute base, LoRA and both gradients in one autograd function: the matrix
products that are needed anyway also scale and add (``addmm``). peft's layers compute the same, but importing peft imports most of
transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .casting import CastingConv2d, CastingLinear, low_precision, outside_autocast
from .frozen_layers import MatrixProduct

# Numbers that the LoRA of one layer reads and writes. On two cores with AVX-512 BF16, with AMX and without, all its products took 0.08 ms
# in fp32 and 0.19 in bf16 for 41,000 (16 tokens, 1280 to 1280 channels), the same time for 164,000 (256, 320 to 320), and 1.1 and 0.4 to
# 0.6 ms for 737,000 (256, 320 to 2560).
_SMALL = 2**17


class LoraLayer(nn.Module):
    """A frozen layer, ``base_layer``, and LoRA beside it. The matrices have peft's names, ``lora_A`` (down) and ``lora_B`` (up).

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
        """The base layer's, as in peft: some code asks the layer in its place."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base layer's."""
        return self.base_layer.bias

    @property
    def uses_dropout(self) -> bool:
        """Whether parts of the input are dropped in this pass."""
        return self.training and not isinstance(self.lora_dropout, nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's result plus LoRA's, in the dtype of the former."""
        result: torch.Tensor = self.base_layer(x)
        change = self.lora_B(self.lora_A(self.lora_dropout(x)))
        return torch.add(result, change * self.scale).to(result.dtype)


class LoraLinear(LoraLayer):
    """LoRA beside a Linear."""

    def _matrices(self, base: Any, rank: int) -> tuple[Any, Any]:
        return CastingLinear(base.in_features, rank, bias=False), CastingLinear(rank, base.out_features, bias=False)


class LoraConv2d(LoraLayer):
    """LoRA beside a convolution: down is a convolution of the same kind, up a 1 x 1 convolution."""

    def _matrices(self, base: Any, rank: int) -> tuple[Any, Any]:
        down = CastingConv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)
        return down, CastingConv2d(rank, base.out_channels, 1, bias=False)


class FusedLoraLinear(LoraLinear):
    """LoRA and a Linear in one function, except with dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), in the dtype of ``x`` or of autocast."""
        return super().forward(x) if self.uses_dropout else _fused(x, [self])[0]


class FusedLoraPointwise(LoraConv2d):
    """The same for a 1 x 1 convolution, which is a matrix product of channels-last images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height, width), in the dtype of ``x`` or of autocast."""
        # converting to channels last is cheap on a CPU
        channels_last = x.device.type == "cpu" or x.is_contiguous(memory_format=torch.channels_last)
        if self.uses_dropout or not channels_last:
            return super().forward(x)
        return _fused(x.permute(0, 2, 3, 1), [self])[0].permute(0, 3, 1, 2)


def with_lora(base: nn.Module, rank: int, scale: float, dropout: float) -> LoraLayer:
    """``base`` with LoRA for its kind of layer: fused for plain matrix products and packed ones (``MatrixProduct``)."""
    kind: type[LoraLayer]
    if isinstance(base, nn.Linear):
        kind = FusedLoraLinear if type(base) is nn.Linear or isinstance(base, MatrixProduct) else LoraLinear
    else:
        assert isinstance(base, nn.Conv2d) and base.dilation == (1, 1) and base.groups == 1
        fused = isinstance(base, MatrixProduct) or (type(base) is nn.Conv2d and _is_pointwise(base))
        kind = FusedLoraPointwise if fused else LoraConv2d
    return kind(base, rank, scale, dropout)


def apply_together(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    """The result of each of ``layers``, with LoRA or without, for the same ``x`` (..., in)."""
    if not all(isinstance(layer, FusedLoraLinear) and not layer.uses_dropout for layer in layers):
        return [layer(x) for layer in layers]
    return _fused(x, layers)


def _fused(x: torch.Tensor, layers: Sequence[Any]) -> list[torch.Tensor]:
    parts = [_parts(layer) for layer in layers]
    scales, tensors = [scale for *_, scale in parts], [tensor for *tensors, _ in parts for tensor in tensors]
    results: Any = outside_autocast(x, lambda cast: _FusedLora.apply(cast, scales, *tensors))  # type: ignore[no-untyped-call]
    return list(results)


def _parts(layer: Any) -> tuple[Any, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
    """Weight (out, in) or the packed layer, bias, down (rank, in), up (out, rank), scale."""
    base = layer.base_layer
    down, up = (low_precision(matrix.weight).flatten(1) for matrix in (layer.lora_A, layer.lora_B))
    return base if isinstance(base, MatrixProduct) else low_precision(base.weight).flatten(1), base.bias, down, up, layer.scale


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.groups)
    return shape == ((1, 1), (1, 1), (0, 0), 1)


class _FusedLora(torch.autograd.Function):
    """``x W' + b + scale x D' U'`` for each of several layers, with W (out, in), D (rank, in), U (out, rank): LoRA and the backward pass
    read ``x`` once for all of them.

    ``parts``: weight (or the packed layer), bias, down and up of each layer. W and b are cast to the dtype of ``x``, D and U to the dtype
    in which LoRA's products are computed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: list[float], *parts: Any) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        weights, biases, downs, ups = (parts[place::4] for place in range(4))
        weights = tuple(weight if isinstance(weight, MatrixProduct) else weight.to(x.dtype) for weight in weights)
        dtype = _lora_dtype(rows, max(len(up) for up in ups))
        downs, ups = tuple(down.to(dtype) for down in downs), tuple(up.to(dtype) for up in ups)
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        inner = rows.to(dtype) @ down.t()
        results = []
        inners = _split(inner, [len(one) for one in downs])
        for weight, bias, part, up, scale in zip(weights, biases, inners, ups, scales, strict=True):
            total = _product(rows, weight, bias, needs_gradient=ctx.needs_input_grad[0])
            results.append(_add_product(total, part, up.t(), scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x, inner, down, *ups)
        ctx.weights, ctx.scales, ctx.dtypes = weights, scales, [getattr(part, "dtype", None) for part in parts]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, down, *ups = ctx.saved_tensors
        rows, uppers, sizes = x.reshape(-1, x.shape[-1]), [one.reshape(-1, one.shape[-1]) for one in gradients], [up.shape[1] for up in ups]
        dtype, by_inner = inner.dtype, inner.new_empty(inner.shape)
        lora_uppers = [upper.to(dtype) for upper in uppers]
        for place, upper, up, scale in zip(_split(by_inner, sizes), lora_uppers, ups, ctx.scales, strict=True):
            place.addmm_(upper, up, beta=0, alpha=scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            for upper, weight in zip(uppers, ctx.weights, strict=True):
                by_x = _add_input_gradient(by_x, upper, weight, x.shape)
            assert by_x is not None
            by_x = _add_product(by_x, by_inner, down).view(x.shape)
        needed = [ctx.needs_input_grad[2 + place] for place in range(len(ctx.dtypes))]
        by_part: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed[2::4]):
            by_part[2::4] = _split(by_inner.t() @ rows.to(dtype), sizes, 0)
        for number, (upper, part, scale) in enumerate(zip(lora_uppers, _split(inner, sizes), ctx.scales, strict=True)):
            if needed[4 * number + 3]:
                by_part[4 * number + 3] = upper.new_empty(upper.shape[1], part.shape[1]).addmm_(upper.t(), part, beta=0, alpha=scale)
        return by_x, None, *(None if each is None else each.to(kind) for each, kind in zip(by_part, ctx.dtypes, strict=True))


def _lora_dtype(rows: torch.Tensor, width: int) -> torch.dtype:
    """The dtype for LoRA's products of ``rows`` (n, in) to ``width``.

    A CPU does small ones faster in fp32: oneDNN, which does those in half precision, takes longer to start than they take to compute.
    """
    small = rows.device.type == "cpu" and rows.numel() + len(rows) * width <= _SMALL
    return torch.float32 if small else rows.dtype


def _product(rows: torch.Tensor, weight: Any, bias: torch.Tensor | None, *, needs_gradient: bool) -> torch.Tensor:
    """``rows`` (n, in) to (n, out), in their dtype. ``needs_gradient``: their gradient will be computed."""
    if isinstance(weight, MatrixProduct):
        return weight.product(rows, needs_gradient=needs_gradient)
    return nn.functional.linear(rows, weight, None if bias is None else bias.to(rows.dtype))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """``total`` plus ``scale`` times ``left`` times ``right``, in place."""
    return total.addmm_(left, right, alpha=scale) if left.dtype == total.dtype else total.add_(left @ right, alpha=scale)


def _add_input_gradient(total: torch.Tensor | None, upper: torch.Tensor, weight: Any, shape: torch.Size) -> torch.Tensor:
    """``total`` (n, in) plus the product of ``upper`` (n, out) with a weight."""
    if isinstance(weight, MatrixProduct):
        part = weight.input_gradient(torch.Size((len(upper), shape[-1])), upper)
        return part if total is None else total.add_(part)
    return upper @ weight if total is None else total.addmm_(upper, weight)


def _split(tensor: torch.Tensor, sizes: list[int], dim: int = 1) -> list[torch.Tensor]:
    return [tensor] if len(sizes) == 1 else list(tensor.split(sizes, dim))
