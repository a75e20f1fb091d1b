"""Layers of the frozen base on a CPU whose weights lie in oneDNN's blocks. Imports torch: import this module late.

torch gives oneDNN a weight in rows, which oneDNN puts into blocks of its own at every call, forward and backward. Deep in the UNet, where
few pixels meet large weights, that takes as long as the product, or several times as long. The base is frozen, so its blocks can be made
once: those of the 3 x 3 convolutions and, in half precision, of all layers. The derivative by the input is a product, too, with the weight
turned round: it has blocks of its own, for which the memory goes up.

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
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolution, pointwise, linear = nn.Conv2d(32, 64, _KERNEL, stride=2, padding=1), nn.Conv2d(32, 64, 1), nn.Linear(32, 64)
            tried = (convolution, (1, 32, 8, 8)), (pointwise, (1, 32, 4, 4)), (linear, (3, 32))
            return all(_agree(layer.to(dtype), torch.randn(shape).to(dtype)) for layer, shape in tried)
    except _MISSING:
        return False


def _agree(plain: nn.Conv2d | nn.Linear, inputs: torch.Tensor) -> bool:
    plain.requires_grad_(False)
    kind = _kind(plain, inputs.dtype)
    if kind is None:
        return True
    results = []
    for layer in (plain, kind(plain)):
        given = inputs.clone().requires_grad_()
        computed = layer(given)
        computed.sum().backward()
        results.append((computed.detach(), given.grad))
    tolerance = 1e-4 if inputs.dtype == torch.float32 else 0.05
    return all(torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance) for theirs, ours in zip(*results, strict=True))


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
    if module.kernel_size == _KERNEL and module.padding == (1, 1):
        return PrepackedConv2d
    pointwise = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
    return PrepackedPointwise if half and pointwise else None


class _Prepacked(nn.Module):
    """What the layers share: a frozen weight, first in rows (``plain``), from the first call on in blocks, one for each direction."""

    plain: nn.Parameter | None
    bias: nn.Parameter | None

    def _take(self, layer: Any) -> None:
        self.register_parameter("plain", layer.weight)
        self.register_parameter("bias", layer.bias)
        self._forwards: _Blocks | None = None
        self._backwards: _Blocks | None = None
        self._gives_up = False
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in rows, in the shape that the layer had."""
        if self.plain is not None:
            return self.plain
        assert self._forwards is not None
        return self._forwards.rows().view(self._shape())

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer computes, on blocks and without autograd."""
        if self._gives_up:
            return self._plainly(inputs)
        if self._forwards is None:
            assert self.plain is not None
            self._forwards = self._pack(self.plain.detach(), inputs, turned=False)
            self.plain = None
        if not self._forwards.fit(inputs.shape):
            self._unpack()
            return self._plainly(inputs)
        return self._forwards.compute(inputs, self._bias(inputs))

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The derivative by the input, of ``shape``: the product of ``gradient`` with the turned weight."""
        if self._gives_up:
            return self._plain_gradient(shape, gradient)
        spread = self._spread(shape, gradient)
        if self._backwards is None:
            self._backwards = self._pack(self.weight, spread, turned=True)
        if not self._backwards.fit(spread.shape):
            self._unpack()
            return self._plain_gradient(shape, gradient)
        return self._backwards.compute(spread, None)

    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _pack(self, weight: torch.Tensor, inputs: torch.Tensor, *, turned: bool) -> _Blocks:
        raise NotImplementedError

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _spread(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

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

    def _shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *_KERNEL)

    def _pack(self, weight: torch.Tensor, inputs: torch.Tensor, *, turned: bool) -> _Blocks:
        blocks = _ConvolutionBlocks(self.padding, (1, 1) if turned else self.stride)
        blocks.pack(_turned(weight) if turned else weight, inputs.shape)
        return blocks

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(inputs, self.weight, self._bias(inputs), self.stride, self.padding)

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self.padding)
        return result

    def _spread(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """A stride leaves pixels out: the gradient is zero there."""
        if self.stride == (1, 1):
            return gradient
        spread = gradient.new_zeros(*gradient.shape[:2], *shape[2:])
        spread[:, :, :: self.stride[0], :: self.stride[1]] = gradient
        return spread


class Rows(_Prepacked):
    """A layer that is a matrix product of rows (n, in)."""

    def rows_product(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, in) to (n, out), with autograd."""
        return _applied(self, rows)

    def _pack(self, weight: torch.Tensor, inputs: torch.Tensor, *, turned: bool) -> _Blocks:
        blocks, matrix = _LinearBlocks(), weight.flatten(1)
        blocks.pack(matrix.t().contiguous() if turned else matrix, inputs.shape)
        return blocks

    def _plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight.flatten(1), self._bias(inputs))

    def _plain_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.weight.flatten(1)


class PrepackedLinear(Rows, nn.Linear):  # type: ignore[misc, override]
    """A frozen Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.rows_product(input.reshape(-1, self.in_features)).view(*input.shape[:-1], -1)

    def _shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)


class PrepackedPointwise(Rows, FrozenConv2d):  # type: ignore[misc, override]
    """A frozen 1 x 1 convolution. What it computes is channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        FrozenConv2d.__init__(self, layer)
        self._take(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h, w)."""
        batch, _, height, width = input.shape
        rows = self.rows_product(input.permute(0, 2, 3, 1).reshape(-1, self.in_channels))
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, 1, 1)


def _applied(layer: _Prepacked, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.is_meta:
        return layer._plainly(inputs)
    return outside_autocast(inputs, lambda given: _Product.apply(given, layer))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """The product, of which the backward pass needs nothing but the layer."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: _Prepacked) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.product(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (ctx.layer.input_gradient(ctx.shape, gradients[0]) if ctx.needs_input_grad[0] else None), None


class _Blocks:
    """One weight in the blocks that the shape of the last call wanted."""

    def __init__(self) -> None:
        self._packed: torch.Tensor | None = None
        self._wanted: torch.Size | None = None
        self._layouts: dict[torch.Size, bytes] = {}
        self._calls = self._repacks = 0

    def rows(self) -> torch.Tensor:
        """The weight as it was."""
        assert self._packed is not None
        return self._packed.to_dense()

    def pack(self, weight: torch.Tensor, shape: torch.Size) -> None:
        """Make the blocks for inputs of ``shape`` from a weight in rows."""
        self._packed, self._wanted = self._reordered(weight, shape), shape
        self._layouts[shape] = _layout(self._packed)

    def fit(self, shape: torch.Size) -> bool:
        """Bring the blocks to what ``shape`` wants; False when that happens too often to be worth it."""
        self._calls += 1
        if shape == self._wanted:
            return True
        assert self._wanted is not None
        present = self._layouts[self._wanted]
        if self._layouts.get(shape) != present:
            self.pack(self.rows(), shape)  # which also tells what a new shape wants
            self._repacks += self._layouts[shape] != present
        self._wanted = shape
        return self._repacks <= max(_FEW_REPACKS, self._calls // _CALLS_A_REPACK)

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of ``inputs`` with the weight."""
        raise NotImplementedError

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        raise NotImplementedError


class _ConvolutionBlocks(_Blocks):
    """A weight (out, in, 3, 3), inputs (batch, in, h, w)."""

    def __init__(self, padding: Any, stride: Any) -> None:
        super().__init__()
        self._options = (list(padding), list(stride), [1, 1], 1)  # and dilation, groups

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution."""
        padding, *rest = self._options
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(inputs, self._packed, bias, padding, *rest, "none", [], "")
        return result

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        # from channels last, which lies nearer to the blocks, it is twice as fast
        rows = weight.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(rows, *self._options, list(shape))
        return result


class _LinearBlocks(_Blocks):
    """A weight (out, in), inputs (n, in)."""

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The matrix product."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, bias, "none", [], "")
        return result

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, shape[0])
        return result


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
