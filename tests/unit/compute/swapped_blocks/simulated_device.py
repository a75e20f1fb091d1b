"""A device that is other memory of the CPU, whose copies are as late as a GPU's can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.compute.swapped_blocks.copy_stream import CopyStream

POISON = 0xFF  # NaN in every float dtype, if all bytes have this value


class SimulatedStream(CopyStream):
    """Copies are made when something waits for them. Until then, and after the release, the memory is poisoned.

    ``log`` has an entry for each copy and release, ``("copy", n)``, with n in the order in which memory was first given out.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.log: list[tuple[str, int]] = []
        self.bytes = self.peak = self.copied = 0
        self._queue: list[tuple[Sequence[torch.Tensor], torch.Tensor]] = []
        self._made = 0
        self._numbers: dict[int, int] = {}

    def number(self, target: torch.Tensor) -> int:
        return self._numbers.setdefault(id(target), len(self._numbers))

    def allocate(self, target: torch.Tensor) -> None:
        super().allocate(target)
        target.fill_(POISON)
        self.bytes += target.nbytes
        self.peak = max(self.peak, self.bytes)

    def release(self, target: torch.Tensor) -> None:
        assert all(target is not other for _, other in self._queue[self._made :]), "a copy would still write into it"
        target.fill_(POISON)
        self.bytes -= target.nbytes
        self.log.append(("release", self.number(target)))

    def copy(self, source: Sequence[torch.Tensor], target: torch.Tensor) -> int:
        self.log.append(("copy", self.number(target)))
        self.copied += target.nbytes
        self._queue.append((source, target))
        return len(self._queue)

    def wait(self, copy: Any) -> None:
        for source, target in self._queue[self._made : copy]:
            super().copy(source, target)
        self._made = max(self._made, copy)
