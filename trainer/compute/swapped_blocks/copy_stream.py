"""Copies from the host to a device beside the computation there. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_SMALLEST_CHUNK = 2**20


class CopyStream:
    """Copies that wait for nothing and finish at once, as between two parts of main memory. Subclasses copy in the background.

    A copy starts after the work that the device was given before it. What uses the copied data is given to the device after ``wait``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host_memory(self, size: int) -> torch.Tensor:
        """Memory of the host for ``size`` bytes, as uint8."""
        return torch.empty(size, dtype=torch.uint8)

    def allocate(self, target: torch.Tensor) -> None:
        """Give ``target``, a whole storage, its memory on the device."""
        target.untyped_storage().resize_(target.nbytes)

    def release(self, target: torch.Tensor) -> None:
        """Give that memory back. ``target`` and its views stay tensors of the same shape, which must not be read."""
        target.untyped_storage().resize_(0)

    def copy(self, source: Sequence[torch.Tensor], target: torch.Tensor) -> Any:
        """Start to copy the bytes of ``source``, one tensor after the other, into ``target``; returns what ``wait`` takes."""
        _copy_bytes(source, target)

    def wait(self, copy: Any) -> None:
        """Have the work that the device is given from now on wait for ``copy``."""


class CudaCopyStream(CopyStream):
    """A second stream of a GPU, with pinned memory on the host: without that, copies are not made in the background."""

    def __init__(self, device: torch.device, warn: Callable[[str], None]) -> None:
        super().__init__(device)
        self._stream, self._warn, self._pins = torch.cuda.Stream(device), warn, True

    def host_memory(self, size: int) -> torch.Tensor:
        """Pinned memory, while the system allows it."""
        if self._pins:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # the system limits how much may be pinned
                self._pins = False
                self._warn("The system allows no more pinned memory, so that copying blocks to the GPU takes longer.")
        return super().host_memory(size)

    def copy(self, source: Sequence[torch.Tensor], target: torch.Tensor) -> torch.cuda.Event:
        """See :class:`CopyStream`."""
        # the memory of ``target`` may belong to kernels that have not run yet
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            _copy_bytes(source, target)
            copied: torch.cuda.Event = self._stream.record_event()
        return copied

    def wait(self, copy: torch.cuda.Event) -> None:
        """See :class:`CopyStream`."""
        torch.cuda.current_stream(self.device).wait_event(copy)


def copy_stream(device: torch.device, warn: Callable[[str], None]) -> CopyStream:
    """The copy stream of ``device``; ``warn`` shows a message to the user."""
    return CudaCopyStream(device, warn) if device.type == "cuda" else CopyStream(device)


def chunk_sizes(size: int) -> list[int]:
    """``size`` bytes as powers of two and a small rest: torch rounds pinned memory up to a power of two, nearly twice the size at worst."""
    sizes = []
    while size > 0:
        sizes.append(size if size < _SMALLEST_CHUNK else 1 << (size.bit_length() - 1))
        size -= sizes[-1]
    return sizes


def _copy_bytes(source: Sequence[torch.Tensor], target: torch.Tensor) -> None:
    with torch.no_grad():
        for part, chunk in zip(target.split([len(chunk) for chunk in source]), source, strict=True):
            part.copy_(chunk, non_blocking=True)
