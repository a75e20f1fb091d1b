"""Keys that control a training in the terminal, read one by one without Enter."""

from __future__ import annotations

import queue
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from ..runs.controls import Action, Control

_POLL_SECONDS = 0.2
LEGEND = "keys: s Save now · i Sample now · e Stop after this epoch · p Pause / Resume · Ctrl+C Stop"
_ACTIONS: dict[str, Action] = {"s": "save_now", "i": "sample_now", "e": "stop_after_epoch"}


class TrainingKeys:
    """Puts a request into ``controls`` for every key while its context is active. Does nothing unless standard input is a terminal."""

    def __init__(self, controls: queue.SimpleQueue[Control]) -> None:
        self._controls = controls
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._read, name="training-keys", daemon=True)
        self._paused = False
        self._settings: Any = None
        self.active = sys.stdin is not None and sys.stdin.isatty()

    def __enter__(self) -> TrainingKeys:
        if self.active:
            self._enter_keys()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.active:
            self._quit.set()
            self._thread.join()
            self._leave_keys()

    def press(self, key: str) -> None:
        """Do what ``key`` stands for; other keys do nothing."""
        if key.lower() == "p":
            self._paused = not self._paused
            self._controls.put(Control(action="pause" if self._paused else "resume"))
        elif (action := _ACTIONS.get(key.lower())) is not None:
            self._controls.put(Control(action=action))

    def _read(self) -> None:
        while not self._quit.is_set():
            if key := _next_key():
                self.press(key)

    def _enter_keys(self) -> None:
        if sys.platform != "win32":
            import termios
            import tty

            self._settings = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno())  # Ctrl+C still interrupts

    def _leave_keys(self) -> None:
        if sys.platform != "win32" and self._settings is not None:
            import termios

            with suppress(termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._settings)


def _next_key() -> str:
    """The next key that was pressed; empty if there is none for a moment."""
    if sys.platform == "win32":
        import msvcrt

        if msvcrt.kbhit():
            return msvcrt.getwch()
        time.sleep(_POLL_SECONDS)
        return ""
    import os
    import select

    terminal = sys.stdin.fileno()
    ready, _, _ = select.select([terminal], [], [], _POLL_SECONDS)
    if not ready:
        return ""
    try:
        return os.read(terminal, 1).decode("ascii", "ignore")
    except OSError:  # the terminal was closed
        time.sleep(_POLL_SECONDS)
        return ""
