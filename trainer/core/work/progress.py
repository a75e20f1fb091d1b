"""How far long work is, told to whoever shows it: nobody, a terminal, or a node.

What takes long (hashing a checkpoint, merging, exporting a dataset, sampling) tells ``report`` or goes through ``counted``, and need not
know who listens. Training has events of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

Listener = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""
Item = TypeVar("Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
EVERY_SECONDS = 5.0  # between two lines in a terminal; what is done sooner says nothing


def report_progress(what: str, done: int, total: int) -> None:
    """Tell the listener of this thread, if there is one, that ``done`` of ``total`` is done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """``items``, reporting each that was dealt with."""
    for done, item in enumerate(items):
        report_progress(what, done, total)
        yield item
    report_progress(what, total, total)


@contextmanager
def send_progress_to(listener: Listener | None) -> Iterator[None]:
    """Within it ``listener`` is told, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class ProgressLines:
    """A listener that writes a line now and then: ``hashing model.safetensors: 40 %``."""

    def __init__(self, stream: TextIO | None = None, every: float = EVERY_SECONDS) -> None:
        self._stream, self._every = stream, every
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        print(f"{what}: {format_progress(done, total)}", file=self._stream or sys.stderr, flush=True)


def format_progress(done: int, total: int) -> str:
    """``3 of 12``, or ``40 %`` of what nobody counts (bytes)."""
    if is_byte_count(total):
        return f"{100 * done // total} %"
    return f"{done} of {total}" if total else str(done)


def is_byte_count(total: int) -> bool:
    """Whether nobody wants to read the number itself: that of bytes."""
    return total > 100_000
