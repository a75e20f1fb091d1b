"""Layers of the frozen base whose weights are packed for oneDNN. Imports torch: import this module late.

torch passes plain weights to oneDNN, which reorders them into blocks in every call, forward and backward. Deep in the UNet, where few
pixels meet large weights, this takes as long as the product itself or several times as long. The base is frozen, so its weights can be
packed once: those of the 3 x 3 convolutions and, in half precision, of all layers. The gradient of the input is a product with the
transposed weight, which is packed as well, and takes the memory of a second copy.

The best layout depends on the processor and on the shape of the input (see packed_weights.py). So a weight is packed again when a shape
wants another layout (validation images between training steps, for example), and a layer whose shapes change all the time becomes a
plain one again. All of them compute with oneDNN's own kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input

from .. import torch_private
from ..casting import outside_autocast
from ..frozen_layers import FrozenConv2d, MatrixProduct
from ..self_check import functions_agree
from .packed_weights import KERNEL, PackedConvolution, PackedConvolutionGradient, PackedLinear, PackedWeight, transposed


def replace_layers(denoiser: nn.Module) -> None:
    """Replace layers of the frozen ``denoiser`` in place, before LoRA goes in. Their weights are packed at the first call."""
    for name, module, replacement in list(_replaceable(denoiser)):
        parent, _, last = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), last, replacement(module))


def packed_bytes(denoiser: nn.Module, dtype: torch.dtype) -> int:
    """What ``replace_layers`` adds to the memory of ``denoiser`` with weights in ``dtype``: those packed for the backward pass."""
    numbers: int = sum(module.weight.numel() for _, module, _ in _replaceable(denoiser, dtype))
    return numbers * dtype.itemsize


@functools.cache
def layers_agree(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, and they agree with torch's layers, forward and backward."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolution, pointwise, linear = nn.Conv2d(32, 64, KERNEL, stride=2, padding=1), nn.Conv2d(32, 64, 1), nn.Linear(32, 64)
            trials = (convolution, (1, 32, 8, 8)), (pointwise, (1, 32, 4, 4)), (linear, (3, 32))
            return all(_agrees(layer.to(dtype), torch.randn(shape).to(dtype)) for layer, shape in trials)
    except torch_private.MISSING_OPERATOR:
        return False


def _agrees(plain: nn.Conv2d | nn.Linear, inputs: torch.Tensor) -> bool:
    plain.requires_grad_(False)
    replacement = _replacement(plain, inputs.dtype)
    tolerance = 1e-4 if inputs.dtype == torch.float32 else 0.02
    return replacement is None or functions_agree(replacement(plain), plain, [inputs], tolerance)


def _replaceable(denoiser: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Any, type[_PackedLayer]]]:
    """Name, layer and the class of its replacement, for weights in ``dtype`` (else in their own)."""
    for name, module in denoiser.named_modules():
        if replacement := _replacement(module, dtype):
            yield name, module, replacement


def _replacement(module: nn.Module, dtype: torch.dtype | None) -> type[_PackedLayer] | None:
    """The class that replaces ``module``, if any.

    A matrix product in fp32 reads a plain weight as fast as most packed ones, which are not worth their memory. In half precision, the
    processor's instructions take pairs or tiles of numbers, into which oneDNN brings every weight in every call.
    """
    if type(module) not in (nn.Linear, nn.Conv2d):
        return None
    assert isinstance(module, nn.Linear | nn.Conv2d)
    half = (dtype or module.weight.dtype).itemsize == 2
    if isinstance(module, nn.Linear):
        return OneDnnLinear if half else None
    if module.padding_mode != "zeros" or module.dilation != (1, 1) or module.groups != 1:
        return None
    if module.kernel_size == KERNEL and module.padding == (1, 1):
        return OneDnnConv2d
    pointwise = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
    return OneDnnPointwise if half and pointwise else None


class _PackedLayer(nn.Module):
    """A frozen weight: plain at first, and from the first call on packed, once for each direction."""

    plain: nn.Parameter | None
    bias: nn.Parameter | None

    def _take(self, layer: Any) -> None:
        self._shape = layer.weight.shape
        self.register_parameter("plain", layer.weight)
        self.register_parameter("bias", layer.bias)
        self._forward_weight: PackedWeight | None = None
        self._backward_weight: PackedWeight | None = None
        self._stays_plain = False
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, in the shape that the layer had."""
        if self.plain is not None:
            return self.plain
        assert self._forward_weight is not None
        return self._forward_weight.unpacked().view(self._shape)

    def product(self, inputs: torch.Tensor, *, needs_gradient: bool) -> torch.Tensor:
        """The layer's result, outside of autograd. ``needs_gradient``: ``input_gradient`` will be called for these ``inputs``."""
        if self._stays_plain:
            return self._plain_product(inputs)
        if self._forward_weight is None:
            assert self.plain is not None
            weight, self.plain = self.plain.detach(), None
            self._forward_weight = self._pack(weight, inputs.shape, backward=False)
            if needs_gradient:  # while the plain weight is still there
                self._backward_weight = self._pack(weight, inputs.shape, backward=True)
        if not self._forward_weight.fit(inputs.shape):
            self._unpack()
            return self._plain_product(inputs)
        return self._forward_weight.compute(inputs, self._bias(inputs))

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of an input of ``shape``: the product of ``gradient`` with the transposed weight."""
        if self._stays_plain:
            return self._plain_gradient(shape, gradient)
        if self._backward_weight is None:
            self._backward_weight = self._pack(self.weight, shape, backward=True)
        if not self._backward_weight.fit(shape):
            self._unpack()
            return self._plain_gradient(shape, gradient)
        return self._backward_weight.compute(gradient, None)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, backward: bool) -> PackedWeight:
        raise NotImplementedError

    def _plain_product(self, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _bias(self, inputs: torch.Tensor) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(inputs.dtype)

    def _unpack(self) -> None:
        self.plain = nn.Parameter(self.weight, requires_grad=False)
        self._forward_weight = self._backward_weight = None
        self._stays_plain = True


class OneDnnConv2d(_PackedLayer, FrozenConv2d):  # type: ignore[misc, override]
    """A frozen Conv2d, 3 x 3 with zero padding. Its result is channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        FrozenConv2d.__init__(self, layer)
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h', w')."""
        return _applied(self, input)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, backward: bool) -> PackedWeight:
        packed = (PackedConvolutionGradient if backward else PackedConvolution)(self.padding, self.stride)
        packed.pack(weight, shape)
        return packed

    def _plain_product(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(inputs, self.weight, self._bias(inputs), self.stride, self.padding)

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self.padding)
        return result


class _PackedProduct(_PackedLayer, MatrixProduct):
    """A layer that is a matrix product of rows (n, in)."""

    def rows_product(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, in) to (n, out), with autograd."""
        return _applied(self, rows)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, backward: bool) -> PackedWeight:
        packed, matrix = PackedLinear(), weight.flatten(1)
        packed.pack(transposed(matrix) if backward else matrix, shape)
        return packed

    def _plain_product(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight.flatten(1), self._bias(inputs))

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.weight.flatten(1)


class OneDnnLinear(_PackedProduct, nn.Linear):  # type: ignore[misc, override]
    """A frozen Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.rows_product(input.reshape(-1, self.in_features)).view(*input.shape[:-1], -1)


class OneDnnPointwise(_PackedProduct, FrozenConv2d):  # type: ignore[misc, override]
    """A frozen 1 x 1 convolution. Its result is channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        FrozenConv2d.__init__(self, layer)
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h, w)."""
        batch, _, height, width = input.shape
        rows = self.rows_product(input.permute(0, 2, 3, 1).reshape(-1, self.in_channels))
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _applied(layer: _PackedLayer, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.is_meta:
        return layer._plain_product(inputs)
    return outside_autocast(inputs, lambda cast: _Product.apply(cast, layer))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """The product; its backward pass needs nothing but the layer."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: _PackedLayer) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.product(inputs, needs_gradient=ctx.needs_input_grad[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (ctx.layer.input_gradient(ctx.shape, gradients[0]) if ctx.needs_input_grad[0] else None), None
