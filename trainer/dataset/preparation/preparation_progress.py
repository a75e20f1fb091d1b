"""How a preparation reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, what is being done
WAITING_FOR_FOLDER = "waiting for another process that prepares the same dataset"


def no_progress(done: int, total: int, text: str) -> None:
    """Report nothing."""
