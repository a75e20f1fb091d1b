"""A weight in oneDNN's blocks. Imports torch: import this module late.

How the blocks lie depends on the processor and on the shape of the input; the wrong ones cost more than none. The operators are those with
which torch's own compiler freezes weights on CPUs (``torch.ops.mkldnn``); they have no public name, so that who uses them tries them first.
"""

from __future__ import annotations

from typing import Any

import torch

KERNEL = (3, 3)  # of a UNet's convolutions but the 1 x 1, which are matrix products
MISSING = (RuntimeError, NotImplementedError, AttributeError, TypeError)  # what an operator that is not there, or not so, raises
_STRIP = 256  # rows
_FEW_REPACKS, _CALLS_A_REPACK = 4, 20  # repacking more often than this is not worth it


class Blocks:
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


class ConvolutionBlocks(Blocks):
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


class ConvolutionGradientBlocks(Blocks):
    """The same weight for the convolution's derivative by its input, which takes gradients (batch, out, h', w').

    ``pack`` and ``fit`` are given the shape of the input. oneDNN calls the derivative a transposed convolution.
    """

    def __init__(self, padding: Any, stride: Any) -> None:
        super().__init__()
        self._padding, self._stride = list(padding), list(stride)

    def rows(self) -> torch.Tensor:
        """The weight as it was."""
        return super().rows().transpose(0, 1)

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The derivative, for ``inputs`` that are a gradient."""
        assert self._wanted is not None
        options = self._options(self._wanted)[1]
        result: torch.Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(inputs, self._packed, bias, *options, "none", [], "")
        return result

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        rows = weight.contiguous(memory_format=torch.channels_last)
        size, options = self._options(shape)
        given = [shape[0], weight.shape[0], *size]
        result: torch.Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(rows, *options, given)
        return result

    def _options(self, shape: torch.Size) -> tuple[list[int], tuple[Any, ...]]:
        """Height and width of the gradient for inputs of ``shape``; padding, pixels that a stride left over, stride, dilation, groups."""
        sides = list(zip(shape[2:], KERNEL, self._padding, self._stride, strict=True))
        size = [(side + 2 * padding - kernel) // stride + 1 for side, kernel, padding, stride in sides]
        left = [(side + 2 * padding - kernel) % stride for side, kernel, padding, stride in sides]
        return size, (self._padding, left, self._stride, [1, 1], 1)


class LinearBlocks(Blocks):
    """A weight (out, in), inputs (n, in)."""

    def compute(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The matrix product."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, bias, "none", [], "")
        return result

    def _reordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, shape[0])
        return result


def transposed(matrix: torch.Tensor) -> torch.Tensor:
    """(out, in) to (in, out), contiguous: in strips, whose rows stay in the processor's cache while they are read as columns."""
    result = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    for target, strip in zip(result.split(_STRIP, 1), matrix.split(_STRIP), strict=True):
        target.copy_(strip.t())
    return result


def _layout(packed: torch.Tensor) -> bytes:
    """How the blocks of a packed weight lie, as oneDNN describes it."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes())
