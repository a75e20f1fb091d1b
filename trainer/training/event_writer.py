"""The training process's connection to its parent: the event log, and the pipe through which it is asked to stop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..runs.events import Event, encode_event

_POLL_SECONDS = 0.2
_BROKEN_PIPE, _NOT_CONNECTED = 109, 233  # Windows' ERROR_BROKEN_PIPE and ERROR_PIPE_NOT_CONNECTED


class EventLog:
    """Appends events to the run's log. Each line is flushed, so that the parent sees it at once. Thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(encode_event(event) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file: on Windows, nobody can move or delete a folder in which a file is open."""
        with self._lock:
            self._file.close()


class NullEventLog(EventLog):
    """Drops events: for all processes but the first."""

    def __init__(self) -> None:
        pass

    def __call__(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


def _end_last_line(path: Path) -> None:
    """A process that was killed while it wrote a line must not swallow the first event of the next process."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def watch_parent(on_stop: Callable[[], None], on_line: Callable[[bytes], None] | None = None) -> threading.Thread:
    """Call ``on_line`` with every line of standard input, and ``on_stop`` once when it ends, both on a thread.

    The parent holds the other end of that pipe: it writes requests, closes it to ask for a stop, and the system closes it when the parent
    dies, so that no child outlives ComfyUI. From here on standard input is empty, also for processes started by this one. Without
    ``on_line`` nothing is read: several processes share the pipe, and only one of them may take the lines.
    """
    standard = sys.stdin.fileno()
    pipe = os.dup(standard)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, standard)
    os.close(empty)

    def wait() -> None:
        if on_line is None:
            _wait_for_end(pipe)
        else:
            _read_lines(pipe, on_line)
        on_stop()

    thread = threading.Thread(target=wait, name="watch-parent", daemon=True)
    thread.start()
    return thread


def _read_lines(pipe: int, on_line: Callable[[bytes], None]) -> None:
    """Call ``on_line`` with every complete line; return when nobody holds the other end of ``pipe``."""
    rest = b""
    with suppress(OSError):
        while _wait_for_data(pipe) and (data := os.read(pipe, 65536)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                on_line(line)


def _wait_for_data(pipe: int) -> bool:
    """On Windows, wait until ``pipe`` has data; False when nobody holds its other end. Elsewhere the read itself waits."""
    if sys.platform == "win32":
        # A thread that blocks in a read also blocks every other thread that only asks for the kind of the file, as SciPy's Fortran library
        # does while it is loaded (github.com/numpy/numpy/issues/24290). Peeking into the pipe does not block.
        while (waiting := _peek(pipe)) == 0:
            time.sleep(_POLL_SECONDS)
        return waiting is not None
    return True


def _wait_for_end(pipe: int) -> None:
    """Return when nobody holds the other end of ``pipe``, without reading it."""
    if sys.platform == "win32":
        while _peek(pipe) is not None:
            time.sleep(_POLL_SECONDS)
        return
    import select

    poll = select.poll()
    poll.register(pipe, 0)  # the end is always reported
    poll.poll()


def _peek(pipe: int) -> int | None:
    """The number of bytes that wait in a pipe on Windows; None if nobody holds its other end, and 1 for a terminal."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle, waiting = ctypes.c_void_p(msvcrt.get_osfhandle(pipe)), ctypes.c_uint32(0)
        if kernel.PeekNamedPipe(handle, None, 0, None, ctypes.byref(waiting), None):
            return int(waiting.value)
        return None if ctypes.get_last_error() in (_BROKEN_PIPE, _NOT_CONNECTED) else 1
    return 1
