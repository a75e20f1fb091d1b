"""The command line in a pseudo-terminal, as a user sits in front of it. POSIX only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_PATIENCE = 300.0  # seconds that a busy machine may need


class Terminal:
    """``python -m trainer`` with these arguments, whose standard streams are a terminal that it also is controlled by."""

    def __init__(self, arguments: list[str]) -> None:
        import fcntl
        import termios

        self._ours, theirs = os.openpty()
        self._theirs = theirs  # kept open, so that its settings can be read after the command has ended
        self.before = self.settings()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._shown = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while part := os.read(self._ours, 4096):
                self._shown += part

    @property
    def text(self) -> str:
        """Everything that was shown so far."""
        return self._shown.decode("utf-8", "replace")

    def settings(self) -> list[Any]:
        """The settings of the terminal, for example whether keys are shown and arrive before Enter."""
        import termios

        return termios.tcgetattr(self._theirs)

    def press(self, key: str) -> None:
        """Press a key; ``\\x03`` is Ctrl+C."""
        os.write(self._ours, key.encode())

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until ``is_so`` holds, also after the end of the command; fail with what was shown if it never does."""
        end = time.monotonic() + _PATIENCE
        while not is_so():
            assert time.monotonic() < end, self.text[-3000:]
            time.sleep(0.05)

    def status(self) -> int:
        """Wait for the end of the command; its exit status."""
        return self.process.wait(_PATIENCE)

    def close(self) -> None:
        """End the command if it still runs, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in (self._ours, self._theirs):
            os.close(end)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    """A command in a terminal, which is ended with the context."""
    opened = Terminal(list(arguments))
    try:
        yield opened
    finally:
        opened.close()
