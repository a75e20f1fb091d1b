"""The progress of long work, reported to whoever listens: nobody, a terminal, or a node.

Long work (hashing a checkpoint, merging, exporting a dataset, sampling) calls ``report_progress`` or iterates over ``track(...)``
and need not know who listens. Training reports by events instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

Listener = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and the total."""
_Item = TypeVar("_Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
LINE_INTERVAL = 5.0  # seconds between two lines in a terminal; shorter work prints nothing
_LARGEST_COUNT = 100_000


def report_progress(what: str, done: int, total: int) -> None:
    """Report to the listener of this thread, if it has one, that ``done`` of ``total`` is done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def track(items: Iterable[_Item], what: str, total: int) -> Iterator[_Item]:
    """Iterate over ``items`` and report each when the loop asks for the next."""
    for done, item in enumerate(items):
        report_progress(what, done, total)
        yield item
    report_progress(what, total, total)


@contextmanager
def send_progress_to(listener: Listener | None) -> Iterator[None]:
    """Report the progress of this thread to ``listener`` within the ``with`` block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class ProgressLines:
    """A listener that prints a line now and then: ``hashing model.safetensors: 40 %``."""

    def __init__(self, stream: TextIO | None = None, interval: float = LINE_INTERVAL) -> None:
        self._stream, self._interval = stream, interval
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        print(f"{what}: {format_progress(done, total)}", file=self._stream or sys.stderr, flush=True)


def format_progress(done: int, total: int) -> str:
    """``3 of 12``, or ``40 %`` if the total is a number of bytes."""
    if is_byte_count(total):
        return f"{100 * done // total} %"
    return f"{done} of {total}" if total else str(done)


def is_byte_count(total: int) -> bool:
    """Whether ``total`` is too large for a count of items, so that a percentage says more."""
    return total > _LARGEST_COUNT
