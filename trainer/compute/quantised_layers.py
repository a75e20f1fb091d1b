"""Layers whose frozen weight lies packed (see quantise.py). Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input

from .casting import outside_autocast
from .packing import pack, unpack

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Frozen(torch.autograd.Function):
    """A layer's product, of which the backward pass needs the weight alone: it unpacks it again instead of keeping it.

    Without this, autograd would keep every unpacked weight from the forward to the backward pass, and nothing would be saved.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.layer, ctx.shape, ctx.dtype = layer, inputs.shape, inputs.dtype
        bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
        product: torch.Tensor = layer.product(inputs, layer.unpacked(codes, scales, inputs.dtype), bias)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        codes, scales = ctx.saved_tensors
        weight = ctx.layer.unpacked(codes, scales, ctx.dtype)
        return ctx.layer.input_gradient(ctx.shape, gradients[0].to(ctx.dtype), weight), None, None, None


class _Packed:
    """What both layers share."""

    codes: torch.Tensor
    scales: torch.Tensor

    def _store(self, layer: nn.Linear | nn.Conv2d, kind: str) -> None:
        assert isinstance(self, nn.Module)
        self.kind, self.shape, self.dtype = kind, tuple(layer.weight.shape), layer.weight.dtype
        codes, scales = pack(layer.weight.detach(), kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.train(layer.training)

    def unpacked(self, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight in ``dtype``."""
        return unpack(codes, scales, self.kind, self.shape, dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves between devices and memory layouts like every module, but is never converted: ``.to(bfloat16)`` would undo the packing
        (fp8 is a float)."""
        codes, scales = self.codes, self.scales
        super()._apply(fn, recurse)  # type: ignore[misc]
        if self.codes.dtype != codes.dtype:
            self.codes = codes.to(self.codes.device)
        self.scales = scales.to(self.scales.device)
        return self

    @property
    def weight(self) -> torch.Tensor:
        """The weight unpacked, in its shape and in the dtype that the layer had."""
        return self.unpacked(self.codes, self.scales, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What the layer computes, (..., in) to (..., out) or (batch, in, h, w) to (batch, out, h', w')."""
        return outside_autocast(input, lambda inputs: _Frozen.apply(inputs, self.codes, self.scales, self))  # type: ignore[no-untyped-call]


class PackedLinear(_Packed, nn.Linear):  # type: ignore[override]
    """A Linear with a packed weight. ``weight`` unpacks it: what DoRA and whoever asks for its dtype and device see."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._store(layer, kind)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What Linear computes."""
        return nn.functional.linear(inputs, weight, bias)

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Its derivative by the input."""
        return gradient @ weight


class FrozenConv2d(nn.Conv2d):
    """What stands in the place of a frozen Conv2d and keeps its weight in a way of its own; zero padding, as in all of Stable Diffusion."""

    def __new__(cls, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """peft makes LoRA's convolutions by calling the class of the layer that they adapt: those are plain ones."""
        return super().__new__(cls) if isinstance(layer, nn.Module) else nn.Conv2d(layer, *args, **kwargs)

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        assert layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
            setattr(self, name, getattr(layer, name))
        self.transposed, self.output_padding = False, (0, 0)


class PackedConv2d(_Packed, FrozenConv2d):  # type: ignore[override]
    """A Conv2d with a packed weight."""

    def __init__(self, layer: nn.Conv2d, kind: str) -> None:
        FrozenConv2d.__init__(self, layer)
        self._store(layer, kind)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What Conv2d computes."""
        return nn.functional.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Its derivative by the input."""
        derived: torch.Tensor = conv2d_input(shape, weight, gradient, self.stride, self.padding, self.dilation, self.groups)
        return derived
