"""Following a training child: reading its events as they are written, and ending it."""

from __future__ import annotations

import subprocess  # nosec B404: only for its types
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from ..runs import events
from ..runs.controls import Control

_RESPONSE_SECONDS = 1.5  # a child that was asked to stop is killed unless it reports within this time that it saves its state
SAVING_SECONDS = 120.0  # for saving the state: hundreds of megabytes for SDXL, perhaps to a slow disk


def end_process(child: subprocess.Popen[bytes], is_saving: Callable[[], bool]) -> None:
    """Ask the child to save its state and exit, by closing its standard input; kill its process tree if it does not.

    ``is_saving`` is polled: once the child has reported that it saves its state, it gets more time.
    """
    import psutil

    try:
        tree = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    asked = time.monotonic()
    try:
        while child.poll() is None and time.monotonic() - asked < (SAVING_SECONDS if is_saving() else _RESPONSE_SECONDS):
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.05)
    finally:
        for process in tree:
            try:
                tree.extend(p for p in process.children(recursive=True) if p not in tree)
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()


def pass_on(controls: SimpleQueue[Control], child: subprocess.Popen[bytes]) -> None:
    """Write the requests that wait in ``controls`` to the child. A child that ends in this moment gets none."""
    while child.stdin is not None and not controls.empty():
        with suppress(OSError):
            child.stdin.write(controls.get().to_line())
            child.stdin.flush()


class EventTail:
    """Reads the events of a growing file on a thread. ``saving``: whether the child has reported that it saves its state to stop."""

    def __init__(self, path: Path, start: int) -> None:
        self.saving = False
        self._path, self._position = path, start
        self._buffer = b""
        self._events: list[events.Event] = []
        self._lock, self._arrived, self._quit = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="animelora-events", daemon=True)

    def __enter__(self) -> EventTail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()

    def take(self, *, final: bool) -> list[events.Event]:
        """The events since the last call. With ``final``, the rest of the file is read first."""
        if final:
            self._read()
        with self._lock:
            taken, self._events = self._events, []
            self._arrived.clear()
        return taken

    def wait(self, seconds: float) -> None:
        """Wait for an event, at most ``seconds``."""
        self._arrived.wait(seconds)

    def _follow(self) -> None:
        while not self._quit.wait(0.05):
            self._read()

    def _read(self) -> None:
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    file.seek(self._position)
                    data = file.read()
            except FileNotFoundError:
                return
            self._position += len(data)
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            fresh = [event for line in lines if (event := events.decode_event(line.decode("utf-8", "replace"))) is not None]
            self._events.extend(fresh)
            self.saving = self.saving or any(isinstance(event, events.Phase) and event.phase == events.SAVING for event in fresh)
            if fresh:
                self._arrived.set()
