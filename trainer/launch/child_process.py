"""Following a training child: its events as they are written, and its end when it is asked to stop."""

from __future__ import annotations

import subprocess  # nosec B404: for its types, nothing is started here
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..runs import events

_HEARD_SECONDS = 1.5  # for a child that was told to stop to say that it saves its state; without a word it is killed
SAVING_SECONDS = 120.0  # for it to save: hundreds of megabytes for SDXL, to whatever disk


def end(child: subprocess.Popen[bytes], saving: Callable[[], bool]) -> None:
    """Ask the child to save and leave by closing its standard input; kill its whole process tree when it does not.

    ``saving`` is asked again and again whether the child has told that it saves its state: then it gets the time for that.
    """
    import psutil

    try:
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    asked = time.monotonic()
    try:
        while child.poll() is None and time.monotonic() - asked < (SAVING_SECONDS if saving() else _HEARD_SECONDS):
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.05)
    finally:
        for process in family:
            try:
                family.extend(p for p in process.children(recursive=True) if p not in family)
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()


class Tail:
    """Reads new events of a growing file on a thread. ``saving``: whether one of them said that the child saves its state to leave."""

    def __init__(self, path: Path, start: int) -> None:
        self.saving = False
        self._path, self._position = path, start
        self._buffer = b""
        self._events: list[events.Event] = []
        self._lock, self._news, self._quit = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="animelora-events", daemon=True)

    def __enter__(self) -> Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()

    def take(self, *, final: bool) -> list[events.Event]:
        """The events since the last call; with ``final``, all that the file holds by now."""
        if final:
            self._read()
        with self._lock:
            taken, self._events = self._events, []
            self._news.clear()
        return taken

    def wait(self, seconds: float) -> None:
        """Until there is news, at most ``seconds``."""
        self._news.wait(seconds)

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
                self._news.set()
