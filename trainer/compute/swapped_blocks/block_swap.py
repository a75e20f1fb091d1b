"""Blocks whose frozen tensors are on the device only while they compute. Imports torch: import this module late.

Only copies to the device are needed, since frozen weights do not change. A block's tensors keep their identity and lose the memory behind
them, as in FSDP. So whatever autograd or a layer saved of them for the backward pass, views included, is valid again when the block has
been fetched, and gradients are exactly those of a block that never left.

A pass goes through the blocks forward, and backward through those that lead to a trained weight, computing each again first if it is
checkpointed. Whenever a block is entered, its neighbour in the direction of the pass is fetched too, and every other one is released.
At the ends the direction turns: the last two blocks of the forward pass are the first two of the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from .copy_stream import CopyStream, chunk_sizes

_ALIGNMENT = 256  # bytes: what kernels for matrix products want, and what CUDA's allocator gives


class HostCopy:
    """The frozen tensors of a block: their bytes on the host, and one memory on the device for all of them, which comes and goes."""

    def __init__(self, block: nn.Module, stream: CopyStream) -> None:
        self._stream = stream
        tensors = list(chain(block.parameters(), block.buffers()))
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        whole = torch.zeros(size, dtype=torch.uint8)
        for tensor, start in zip(tensors, starts, strict=True):
            whole[start : start + tensor.nbytes] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        self._host = []
        for part in whole.split(chunk_sizes(size)):
            self._host.append(stream.host_memory(len(part)).copy_(part))
        self._on_device = torch.empty(size, dtype=torch.uint8, device=stream.device)
        for tensor, start in zip(tensors, starts, strict=True):
            # ``data`` leaves each tensor's version as it is: autograd would take a copy into it for a change of what it saved
            tensor.data = self._on_device[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._on_device.untyped_storage().resize_(0)

    def fetch(self) -> Any:
        """Start to copy the block to the device; returns what the stream's ``wait`` takes."""
        self._stream.allocate(self._on_device)
        return self._stream.copy(self._host, self._on_device)

    def release(self) -> None:
        """Give the memory on the device back."""
        self._stream.release(self._on_device)


class BlockSwap:
    """Swaps ``blocks`` of the frozen ``denoiser``, in the order in which they compute. Call it before adapters go in, which stay on the
    device."""

    def __init__(self, denoiser: nn.Module, blocks: Sequence[nn.Module], stream: CopyStream) -> None:
        self._stream = stream
        self._copies = [HostCopy(block, stream) for block in blocks]
        self._present: dict[int, Any] = {}  # copies that are on the device or on their way, by the block's place
        self._backward = False
        denoiser.register_forward_pre_hook(self._start_forward)
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before_forward, place))
            block.register_forward_hook(partial(self._after_forward, place))

    def _start_forward(self, *_: object) -> None:
        self._backward = False

    def _before_forward(self, place: int, *_: object) -> None:
        """In the backward pass too, where a checkpointed block is computed again."""
        self._enter(place)

    def _after_forward(self, place: int, _module: nn.Module, _inputs: Any, result: torch.Tensor) -> None:
        if not self._backward and result.requires_grad:
            result.register_hook(partial(self._before_backward, place))

    def _before_backward(self, place: int, _gradient: torch.Tensor) -> None:
        """The gradient of a block's result is the first that is computed of the block."""
        self._backward = True
        self._enter(place)

    def _enter(self, place: int) -> None:
        following = self._following(place)
        for other in [other for other in self._present if other not in (place, following)]:
            self._stream.wait(self._present.pop(other))  # a copy that nothing waited for still writes
            self._copies[other].release()
        for wanted in (place, following):
            if wanted not in self._present:
                self._present[wanted] = self._copies[wanted].fetch()
        self._stream.wait(self._present[place])

    def _following(self, place: int) -> int:
        """The block that will be entered after ``place``."""
        step, count = -1 if self._backward else 1, len(self._copies)
        if 0 <= place + step < count:
            return place + step
        turns = self._backward or torch.is_grad_enabled()
        return max(0, min(place - step, count - 1)) if turns else 0
