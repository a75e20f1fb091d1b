"""Requests of the parent, collected on the thread that reads its pipe and taken up by the training thread between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from ..runs.controls import Control, read_control

_REPORT_SECONDS = 600.0  # between two reports of a paused run, which the parent would else take for a run that hangs


class Requests:
    """What the parent asked for and is not done yet. Thread-safe. Unless ``can_pause``, requests to pause have no effect."""

    def __init__(self, *, can_pause: bool = True) -> None:
        self._can_pause = can_pause
        self._changed = threading.Condition()
        self._waiting: deque[Control] = deque()
        self._stopped = self._stops_after_epoch = self._paused = False

    def take_line(self, line: bytes) -> None:
        """Take in a line of the parent; one that holds no request is dropped."""
        if (control := read_control(line)) is not None:
            with self._changed:
                self._waiting.append(control)
                self._changed.notify_all()

    def stop(self) -> None:
        """Stop as soon as possible: a pause ends, and nothing else is taken up."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def is_stopped(self) -> bool:
        """Whether the run is to stop now."""
        return self._stopped

    def is_stop_due(self, ends_epoch: bool) -> bool:
        """Whether the run is to stop after a step, which may be the last one of its epoch."""
        return self._stopped or (ends_epoch and self._stops_after_epoch)

    def next(self, report_pause: Callable[[], None]) -> Iterator[Control]:
        """The requests in their order. While the run is paused, waits for more; ``report_pause`` is called before each wait."""
        while not self._stopped:
            if (control := self._take()) is not None:
                yield control
            elif self._paused:
                report_pause()
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._stopped, timeout=_REPORT_SECONDS)
            else:
                return

    def _take(self) -> Control | None:
        with self._changed:
            if not self._waiting:
                return None
            control = self._waiting.popleft()
            if control.action in ("pause", "resume"):
                self._paused = self._can_pause and control.action == "pause"
            self._stops_after_epoch = self._stops_after_epoch or control.action == "stop_after_epoch"
            return control
