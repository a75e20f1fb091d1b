"""One frozen weight in a layout of oneDNN's. Imports torch: import this module late.

The layout depends on the processor and on the shape of the input; the wrong one costs more than none. The operators are those with which
torch's own compiler freezes weights on CPUs: see ``torch_private.py``.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import torch_private

KERNEL = (3, 3)  # of a UNet's convolutions, except for the 1 x 1, which are matrix products
_STRIP = 256  # rows
_FEW_REPACKS, _CALLS_A_REPACK = 4, 20  # packing again more often than this is not worth it


class PackedWeight:
    """A weight, packed for the shape of the last call."""

    def __init__(self) -> None:
        self._packed: torch.Tensor | None = None
        self._shape: torch.Size | None = None  # of the last call
        self._layouts: dict[torch.Size, bytes] = {}
        self._calls = self._repacks = 0

    def unpacked(self) -> torch.Tensor:
        """The plain weight."""
        assert self._packed is not None
        return self._packed.to_dense()

    def pack(self, weight: torch.Tensor, shape: torch.Size) -> None:
        """Pack a plain weight for inputs of ``shape``."""
        self._packed, self._shape = self._reordered(weight, shape), shape
        self._layouts[shape] = torch_private.weight_layout(self._packed)

    def fit(self, shape: torch.Size) -> bool:
        """Change to the layout for ``shape``; False when that happens too often to be worth it."""
        self._calls += 1
        if shape == self._shape:
            return True
        assert self._shape is not None
        present = self._layouts[self._shape]
        if self._layouts.get(shape) != present:
            self.pack(self.unpacked(), shape)  # which also shows the layout for a new shape
            self._repacks += self._layouts[shape] != present
        self._shape = shape
        return self._repacks <= max(_FEW_REPACKS, self._calls // _CALLS_A_REPACK)

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of ``inputs`` with the weight."""
        raise NotImplementedError

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        raise NotImplementedError


class PackedConvolution(PackedWeight):
    """A weight (out, in, 3, 3), inputs (batch, in, h, w)."""

    def __init__(self, padding: Any, stride: Any) -> None:
        super().__init__()
        self._options = (list(padding), list(stride), [1, 1], 1)  # padding, stride, dilation, groups

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution."""
        return torch_private.convolution(inputs, self._packed, bias, *self._options)

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        # twice as fast from channels last, which is closer to oneDNN's layouts
        weight = weight.contiguous(memory_format=torch.channels_last)
        return torch_private.reorder_convolution(weight, *self._options, shape)


class PackedConvolutionGradient(PackedWeight):
    """The same weight for the gradient of the convolution's input, which takes gradients (batch, out, h', w').

    ``pack`` and ``fit`` take the shape of the input. oneDNN calls this operation a transposed convolution.
    """

    def __init__(self, padding: Any, stride: Any) -> None:
        super().__init__()
        self._padding, self._stride = list(padding), list(stride)

    def unpacked(self) -> torch.Tensor:
        """The plain weight."""
        return super().unpacked().transpose(0, 1)

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The gradient of the input, from ``inputs``, the gradient of the result."""
        assert self._shape is not None
        options = self._options(self._shape)[1]
        return torch_private.transposed_convolution(inputs, self._packed, bias, *options)

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        size, options = self._options(shape)
        gradient_shape = [shape[0], weight.shape[0], *size]
        weight = weight.contiguous(memory_format=torch.channels_last)
        return torch_private.reorder_transposed_convolution(weight, *options, gradient_shape)

    def _options(self, shape: torch.Size) -> tuple[list[int], tuple[Any, Any, Any, Any, int]]:
        """Height and width of the gradient for inputs of ``shape``; padding, output padding (pixels that the stride skipped), stride,
        dilation, groups."""
        sides = list(zip(shape[2:], KERNEL, self._padding, self._stride, strict=True))
        size = [(side + 2 * padding - kernel) // stride + 1 for side, kernel, padding, stride in sides]
        output_padding = [(side + 2 * padding - kernel) % stride for side, kernel, padding, stride in sides]
        return size, (self._padding, output_padding, self._stride, [1, 1], 1)


class PackedLinear(PackedWeight):
    """A weight (out, in), inputs (n, in)."""

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The matrix product."""
        return torch_private.linear(inputs, self._packed, bias)

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return torch_private.reorder_linear(weight, shape[0])


def transposed(matrix: torch.Tensor) -> torch.Tensor:
    """(out, in) to (in, out), contiguous: in strips, whose rows stay in the processor's cache while they are read as columns."""
    result = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    for target, strip in zip(result.split(_STRIP, 1), matrix.split(_STRIP), strict=True):
        target.copy_(strip.t())
    return result
