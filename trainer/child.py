"""The training child's connection to its parent: where events go, and how it learns that it should stop."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from .events import Event, encode


class Emitter:
    """Appends events to the run's log; each line is flushed, so that the parent sees it at once. Thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._file.write(encode(event) + "\n")
            self._file.flush()


def _end_line(path: Path) -> None:
    """A child that was killed in mid-line must not swallow the first event of the next."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


class Silent(Emitter):
    """Drops events: what every process but the first uses."""

    def __init__(self) -> None:
        pass

    def __call__(self, event: Event) -> None:
        pass


def watch_parent(on_stop: Callable[[], None]) -> threading.Thread:
    """Call ``on_stop`` once when standard input ends.

    The parent holds the other end of that pipe and never writes: it closes it to ask for a stop, and the system closes it
    when the parent dies, so no child outlives ComfyUI. Works the same on Windows.
    """

    def wait() -> None:
        try:
            while os.read(sys.stdin.fileno(), 4096):  # not its buffer, which a thread must not hold when the interpreter ends
                pass
        except (OSError, ValueError):
            pass
        on_stop()

    thread = threading.Thread(target=wait, name="watch-parent", daemon=True)
    thread.start()
    return thread
