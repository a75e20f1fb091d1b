"""Ctrl+C during a training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl+C was pressed since then.

    Ctrl+C raises KeyboardInterrupt as usual. Python drops that exception if it is raised within a destructor or the callback of a weak
    reference; the training is stopped then by the function, which the launcher polls.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield pressed.is_set
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, earlier)
