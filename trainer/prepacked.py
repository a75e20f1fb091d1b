"""Convolutions of the frozen base on a CPU whose weights lie in oneDNN's blocks. Imports torch: import this module late.

torch gives oneDNN a weight in rows, which oneDNN puts into blocks of its own at every call, forward and backward. Deep in the UNet, where
few pixels meet large weights, that takes several times as long as the product. The base is frozen, so its blocks can be made once. The
derivative by the input is a convolution, too, with the weight turned round: it has blocks of its own, for which the memory goes up.

How the blocks lie depends on the processor and on the shape of the input; the wrong ones cost more than none. So each weight is
packed anew when a shape wants other blocks (validation images after training steps, say), and a layer whose shapes change all the time
becomes a plain one again. The numbers are oneDNN's for either.

The operators are those with which torch's own compiler freezes weights on CPUs (``torch.ops.mkldnn``); they have no public name, so that
``works`` tries them before anything relies on them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input

from .casting import outside_autocast
from .packed_layers import FrozenConv2d

_KERNEL = (3, 3)  # of a UNet's convolutions but the 1 x 1, which are matrix products
_FEW_REPACKS, _CALLS_A_REPACK = 4, 20  # repacking more often than this is not worth it
_MISSING = (RuntimeError, NotImplementedError, AttributeError, TypeError)  # what an operator that is not there, or not so, raises


def prepack(unet: nn.Module) -> None:
    """Replace the frozen 3 x 3 convolutions of ``unet`` in place, before LoRA goes in. They are packed at their first call."""
    for name, module in list(_convolutions(unet)):
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, PrepackedConv2d(module))


def extra_bytes(unet: nn.Module, dtype: torch.dtype) -> int:
    """What ``prepack`` adds to the memory of ``unet`` with weights in ``dtype``: the blocks of the backward pass."""
    return sum(module.weight.numel() for _, module in _convolutions(unet)) * dtype.itemsize


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for ``dtype``, and they compute what torch's convolution does, forward and backward."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    plain = nn.Conv2d(32, 64, _KERNEL, stride=2, padding=1).to(dtype).requires_grad_(False)
    plain.weight.copy_(torch.randn(plain.weight.shape, generator=draw) / 17)
    inputs = torch.randn(1, 32, 8, 8, generator=draw).to(dtype)
    results = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for layer in (plain, PrepackedConv2d(plain)):
                given = inputs.clone().requires_grad_()
                computed = layer(given)
                computed.sum().backward()
                results.append((computed.detach(), given.grad))
    except _MISSING:
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    return all(torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance) for theirs, ours in zip(*results, strict=True))


class PrepackedConv2d(FrozenConv2d):
    """A frozen Conv2d, 3 x 3 with zero padding. What it computes is channels last."""

    plain: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.register_parameter("plain", layer.weight)  # type: ignore[arg-type]  # None once it is packed
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self._forwards = self._backwards = _Blocks((0, 0), (1, 1))
        self._gives_up = False
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight in rows, (out, in, 3, 3)."""
        return self._forwards.rows() if self.plain is None else self.plain

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What Conv2d computes, (batch, in, h, w) to (batch, out, h', w')."""
        if self._gives_up or input.is_meta:
            return nn.functional.conv2d(input, self.weight, self.bias, self.stride, self.padding)
        return outside_autocast(input, lambda inputs: _Product.apply(inputs, self))  # type: ignore[no-untyped-call]

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """``forward`` on blocks, without autograd."""
        if self.plain is not None:
            self._forwards = _Blocks(self.padding, self.stride)
            self._forwards.pack(self.plain.detach(), inputs.shape)
            self.plain = None
        if not self._forwards.fit(inputs.shape):
            self._unpack()
            return nn.functional.conv2d(inputs, self.weight, self._bias(inputs), self.stride, self.padding)
        return self._forwards.convolve(inputs, self._bias(inputs))

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The derivative by the input, of ``shape``: the turned weight over the gradient, which a stride has spread out."""
        if self._gives_up:
            return self._plain_gradient(shape, gradient)
        if self.stride != (1, 1):
            spread = gradient.new_zeros(*gradient.shape[:2], *shape[2:])
            spread[:, :, :: self.stride[0], :: self.stride[1]] = gradient
            gradient = spread
        if self._backwards.empty:
            self._backwards = _Blocks(self.padding, (1, 1))
            self._backwards.pack(_turned(self._forwards.rows()), gradient.shape)
        if not self._backwards.fit(gradient.shape):
            self._unpack()
            return self._plain_gradient(shape, gradient[..., :: self.stride[0], :: self.stride[1]])
        return self._backwards.convolve(gradient, None)

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self.padding)
        return result

    def _bias(self, inputs: torch.Tensor) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(inputs.dtype)

    def _unpack(self) -> None:
        self.plain = nn.Parameter(self._forwards.rows(), requires_grad=False)
        self._forwards = self._backwards = _Blocks((0, 0), (1, 1))
        self._gives_up = True


class _Product(torch.autograd.Function):
    """The product, of which the backward pass needs nothing but the layer."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: PrepackedConv2d) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.product(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (ctx.layer.input_gradient(ctx.shape, gradients[0]) if ctx.needs_input_grad[0] else None), None


class _Blocks:
    """One weight in the blocks that the shape of the last call wanted."""

    def __init__(self, padding: Any, stride: Any) -> None:
        self._options = (list(padding), list(stride), [1, 1], 1)  # and dilation, groups
        self._packed: torch.Tensor | None = None
        self._shape: torch.Size | None = None
        self._layouts: dict[torch.Size, bytes] = {}
        self._calls = self._repacks = 0

    @property
    def empty(self) -> bool:
        """Whether nothing has been packed yet."""
        return self._packed is None

    def rows(self) -> torch.Tensor:
        """The weight as it was."""
        assert self._packed is not None
        return self._packed.to_dense()

    def pack(self, weight: torch.Tensor, shape: torch.Size) -> None:
        """Make the blocks for inputs of ``shape`` from a weight in rows."""
        # from channels last, which lies nearer to the blocks, it is twice as fast
        rows = weight.contiguous(memory_format=torch.channels_last)
        self._packed, self._shape = torch.ops.mkldnn._reorder_convolution_weight(rows, *self._options, list(shape)), shape
        self._layouts[shape] = _layout(self._packed)

    def fit(self, shape: torch.Size) -> bool:
        """Bring the blocks to what ``shape`` wants; False when that happens too often to be worth it."""
        self._calls += 1
        if shape == self._shape:
            return True
        assert self._shape is not None
        present = self._layouts[self._shape]
        if self._layouts.get(shape) != present:
            self.pack(self.rows(), shape)  # which also tells what a new shape wants
            self._repacks += self._layouts[shape] != present
        self._shape = shape
        return self._repacks <= max(_FEW_REPACKS, self._calls // _CALLS_A_REPACK)

    def convolve(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution of ``inputs`` with the weight."""
        padding, *rest = self._options
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(inputs, self._packed, bias, padding, *rest, "none", [], "")
        return result


def _convolutions(unet: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in unet.named_modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.padding == (1, 1)
        if plain and module.kernel_size == _KERNEL and module.dilation == (1, 1) and module.groups == 1:
            yield name, module


def _turned(weight: torch.Tensor) -> torch.Tensor:
    """The weight of the derivative: inputs and outputs change places, the kernel is turned by half a circle; channels last."""
    turned = weight.new_empty(weight.shape[1], *_KERNEL, weight.shape[0])
    for row in range(_KERNEL[0]):
        for column in range(_KERNEL[1]):
            turned[:, _KERNEL[0] - 1 - row, _KERNEL[1] - 1 - column] = weight[:, :, row, column].t()
    return turned.permute(0, 3, 1, 2)


def _layout(packed: torch.Tensor) -> bytes:
    """How the blocks of a packed weight lie, as oneDNN describes it."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes())
