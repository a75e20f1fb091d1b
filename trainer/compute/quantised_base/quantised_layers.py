"""Layers with a quantised frozen weight. Imports torch: import this module late."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input

from ..casting import outside_autocast
from ..frozen_layers import FrozenConv2d
from .codes import dequantise_weight, quantise_weight


class _Product(torch.autograd.Function):
    """A layer's product. The backward pass dequantises the weight again.

    With plain operations, autograd would keep every dequantised weight from the forward to the backward pass, and nothing would be saved.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.layer, ctx.shape, ctx.dtype = layer, inputs.shape, inputs.dtype
        bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
        product: torch.Tensor = layer.product(inputs, layer.dequantised(codes, scales, inputs.dtype), bias)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        codes, scales = ctx.saved_tensors
        weight = ctx.layer.dequantised(codes, scales, ctx.dtype)
        return ctx.layer.input_gradient(ctx.shape, gradients[0].to(ctx.dtype), weight), None, None, None


class _QuantisedLayer:
    """What both layers share: ``codes`` and ``scales`` as buffers."""

    codes: torch.Tensor
    scales: torch.Tensor

    def _store(self, layer: nn.Linear | nn.Conv2d, kind: str) -> None:
        assert isinstance(self, nn.Module)
        self.kind, self.shape, self.dtype = kind, tuple(layer.weight.shape), layer.weight.dtype
        codes, scales = quantise_weight(layer.weight.detach(), kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.train(layer.training)

    def dequantised(self, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight in ``dtype``."""
        return dequantise_weight(codes, scales, self.kind, self.shape, dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves between devices and memory layouts like every module, but keeps its dtypes: fp8 is a float, and ``.to(bfloat16)`` would
        convert the codes."""
        codes, scales = self.codes, self.scales
        super()._apply(fn, recurse)  # type: ignore[misc]
        if self.codes.dtype != codes.dtype:
            self.codes = codes.to(self.codes.device)
        self.scales = scales.to(self.scales.device)
        return self

    @property
    def weight(self) -> torch.Tensor:
        """The dequantised weight, in the shape and dtype that the layer had: for DoRA, and for whoever asks for its dtype or device."""
        return self.dequantised(self.codes, self.scales, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), or (batch, in, h, w) to (batch, out, h', w')."""
        return outside_autocast(input, lambda inputs: _Product.apply(inputs, self.codes, self.scales, self))  # type: ignore[no-untyped-call]


class QuantisedLinear(_QuantisedLayer, nn.Linear):  # type: ignore[override]
    """A Linear with a quantised weight."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._store(layer, kind)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As Linear computes it."""
        return nn.functional.linear(inputs, weight, bias)

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of its input."""
        return gradient @ weight


class QuantisedConv2d(_QuantisedLayer, FrozenConv2d):  # type: ignore[override]
    """A Conv2d with a quantised weight."""

    def __init__(self, layer: nn.Conv2d, kind: str) -> None:
        FrozenConv2d.__init__(self, layer)
        self._store(layer, kind)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As Conv2d computes it."""
        return nn.functional.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of its input, of ``shape``."""
        result: torch.Tensor = conv2d_input(shape, weight, gradient, self.stride, self.padding, self.dilation, self.groups)
        return result
