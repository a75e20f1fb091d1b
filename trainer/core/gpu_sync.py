"""Copies to and from a GPU that do not stop the CPU, and a limit on how far the CPU may run ahead."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MAX_QUEUED_STEPS = 2


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy ``tensor``, which was just made on the CPU, to ``device``; to a GPU asynchronously, through pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PendingCopy:
    """An asynchronous copy of ``numbers`` from ``device`` to the CPU. ``is_ready`` never waits, ``values`` does.

    Reading the tensor directly would also wait for all work that was queued after it.
    """

    def __init__(self, numbers: torch.Tensor, device: torch.device) -> None:
        import torch

        self._numbers = numbers.detach().to("cpu", non_blocking=True)  # torch copies into pinned memory
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def is_ready(self) -> bool:
        """Whether ``values`` would return at once."""
        return self._event is None or bool(self._event.query())

    def values(self) -> list[float]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        return [float(number) for number in self._numbers.tolist()]


class StepLimiter:
    """Keeps the CPU at most two steps ahead of a GPU.

    That is enough to keep the GPU busy, and few enough that reported speed and progress are the GPU's and that a stop is quick.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: deque[Any] = deque()

    def step(self) -> None:
        """Call it after each queued step; waits until the GPU has finished all but the last two."""
        import torch

        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > _MAX_QUEUED_STEPS:
            self._events.popleft().synchronize()
