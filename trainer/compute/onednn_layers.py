"""Layers of the frozen base on a CPU whose weights lie in oneDNN's blocks. Imports torch: import this module late.

torch gives oneDNN a weight in rows, which oneDNN puts into blocks of its own at every call, forward and backward. Deep in the UNet, where
few pixels meet large weights, that takes as long as the product, or several times as long. The base is frozen, so its blocks can be made
once: those of the 3 x 3 convolutions and, in half precision, of all layers. The derivative by the input is a product, too, with the weight
turned round: it has blocks of its own, for which the memory goes up.

How the blocks lie depends on the processor and on the shape of the input (onednn.py). So each weight is packed anew when a shape wants
other blocks (validation images after training steps, say), and a layer whose shapes change all the time becomes a plain one again. The
numbers are oneDNN's for either.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input

from .casting import outside_autocast
from .onednn import KERNEL, MISSING, Blocks, ConvolutionBlocks, ConvolutionGradientBlocks, LinearBlocks, transposed
from .quantised_layers import FrozenConv2d
from .self_check import agrees


def prepack(unet: nn.Module) -> None:
    """Replace layers of the frozen ``unet`` in place, before LoRA goes in. They are packed at their first call."""
    for name, module, kind in list(_layers(unet)):
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, kind(module))


def extra_bytes(unet: nn.Module, dtype: torch.dtype) -> int:
    """What ``prepack`` adds to the memory of ``unet`` with weights in ``dtype``: the blocks of the backward pass."""
    numbers: int = sum(module.weight.numel() for _, module, _ in _layers(unet, dtype))
    return numbers * dtype.itemsize


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, and they compute what torch's layers do, forward and backward."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolution, pointwise, linear = nn.Conv2d(32, 64, KERNEL, stride=2, padding=1), nn.Conv2d(32, 64, 1), nn.Linear(32, 64)
            tried = (convolution, (1, 32, 8, 8)), (pointwise, (1, 32, 4, 4)), (linear, (3, 32))
            return all(_agree(layer.to(dtype), torch.randn(shape).to(dtype)) for layer, shape in tried)
    except MISSING:
        return False


def _agree(plain: nn.Conv2d | nn.Linear, inputs: torch.Tensor) -> bool:
    plain.requires_grad_(False)
    kind = _kind(plain, inputs.dtype)
    return kind is None or agrees(kind(plain), plain, [inputs], 1e-4 if inputs.dtype == torch.float32 else 0.02)


def _layers(unet: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Any, type[_Prepacked]]]:
    """Name, layer and what takes its place, for weights in ``dtype`` (else in their own)."""
    for name, module in unet.named_modules():
        if kind := _kind(module, dtype):
            yield name, module, kind


def _kind(module: nn.Module, dtype: torch.dtype | None) -> type[_Prepacked] | None:
    """What takes the place of ``module``.

    A matrix product in fp32 reads a weight in rows as fast as most blocks, for which so much more memory is not worth it; in half precision
    the processor's instructions want pairs or tiles of numbers, into which oneDNN brings every weight at every call.
    """
    if type(module) not in (nn.Linear, nn.Conv2d):
        return None
    assert isinstance(module, nn.Linear | nn.Conv2d)
    half = (dtype or module.weight.dtype).itemsize == 2
    if isinstance(module, nn.Linear):
        return PrepackedLinear if half else None
    if module.padding_mode != "zeros" or module.dilation != (1, 1) or module.groups != 1:
        return None
    if module.kernel_size == KERNEL and module.padding == (1, 1):
        return PrepackedConv2d
    pointwise = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
    return PrepackedPointwise if half and pointwise else None


class _Prepacked(nn.Module):
    """What the layers share: a frozen weight, first in rows (``plain``), from the first call on in blocks, one for each direction."""

    plain: nn.Parameter | None
    bias: nn.Parameter | None

    def _take(self, layer: Any) -> None:
        self._shape = layer.weight.shape
        self.register_parameter("plain", layer.weight)
        self.register_parameter("bias", layer.bias)
        self._forwards: Blocks | None = None
        self._backwards: Blocks | None = None
        self._gives_up = False
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in rows, in the shape that the layer had."""
        if self.plain is not None:
            return self.plain
        assert self._forwards is not None
        return self._forwards.rows().view(self._shape)

    def product(self, inputs: torch.Tensor, *, derives: bool) -> torch.Tensor:
        """What the layer computes, on blocks and without autograd. ``derives``: ``input_gradient`` will be asked for these ``inputs``."""
        if self._gives_up:
            return self._plainly(inputs)
        if self._forwards is None:
            assert self.plain is not None
            weight, self.plain = self.plain.detach(), None
            self._forwards = self._pack(weight, inputs.shape, turned=False)
            if derives:  # while the weight is there in rows
                self._backwards = self._pack(weight, inputs.shape, turned=True)
        if not self._forwards.fit(inputs.shape):
            self._unpack()
            return self._plainly(inputs)
        return self._forwards.compute(inputs, self._bias(inputs))

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The derivative by the input, of ``shape``: the product of ``gradient`` with the turned weight."""
        if self._gives_up:
            return self._plain_gradient(shape, gradient)
        if self._backwards is None:
            self._backwards = self._pack(self.weight, shape, turned=True)
        if not self._backwards.fit(shape):
            self._unpack()
            return self._plain_gradient(shape, gradient)
        return self._backwards.compute(gradient, None)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, turned: bool) -> Blocks:
        raise NotImplementedError

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _bias(self, inputs: torch.Tensor) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(inputs.dtype)

    def _unpack(self) -> None:
        self.plain = nn.Parameter(self.weight, requires_grad=False)
        self._forwards = self._backwards = None
        self._gives_up = True


class PrepackedConv2d(_Prepacked, FrozenConv2d):  # type: ignore[misc, override]
    """A frozen Conv2d, 3 x 3 with zero padding. What it computes is channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        FrozenConv2d.__init__(self, layer)
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What Conv2d computes, (batch, in, h, w) to (batch, out, h', w')."""
        return _applied(self, input)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, turned: bool) -> Blocks:
        blocks = (ConvolutionGradientBlocks if turned else ConvolutionBlocks)(self.padding, self.stride)
        blocks.pack(weight, shape)
        return blocks

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(inputs, self.weight, self._bias(inputs), self.stride, self.padding)

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self.padding)
        return result


class MatrixProduct(_Prepacked):
    """A layer that is a matrix product of rows (n, in)."""

    def rows_product(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, in) to (n, out), with autograd."""
        return _applied(self, rows)

    def _pack(self, weight: torch.Tensor, shape: torch.Size, *, turned: bool) -> Blocks:
        blocks, matrix = LinearBlocks(), weight.flatten(1)
        blocks.pack(transposed(matrix) if turned else matrix, shape)
        return blocks

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight.flatten(1), self._bias(inputs))

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.weight.flatten(1)


class PrepackedLinear(MatrixProduct, nn.Linear):  # type: ignore[misc, override]
    """A frozen Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.rows_product(input.reshape(-1, self.in_features)).view(*input.shape[:-1], -1)


class PrepackedPointwise(MatrixProduct, FrozenConv2d):  # type: ignore[misc, override]
    """A frozen 1 x 1 convolution. What it computes is channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        FrozenConv2d.__init__(self, layer)
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h, w)."""
        batch, _, height, width = input.shape
        rows = self.rows_product(input.permute(0, 2, 3, 1).reshape(-1, self.in_channels))
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _applied(layer: _Prepacked, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.is_meta:
        return layer._plainly(inputs)
    return outside_autocast(inputs, lambda given: _Product.apply(given, layer))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """The product, of which the backward pass needs nothing but the layer."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: _Prepacked) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.product(inputs, derives=ctx.needs_input_grad[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (ctx.layer.input_gradient(ctx.shape, gradients[0]) if ctx.needs_input_grad[0] else None), None
