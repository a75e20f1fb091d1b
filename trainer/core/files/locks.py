"""Locks between processes: lock files that the system releases even if their holder is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import Cancelled
from .reading import is_link


@contextmanager
def hold_lock(path: Path, should_stop: Callable[[], bool], poll_seconds: float = 0.2, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock ``path``. While another process holds it, call ``waiting`` once, then wait and poll ``should_stop``.

    Raises Cancelled when ``should_stop`` returns True.
    """
    lock, waited = FileLock(str(path)), False
    while True:
        try:
            held = lock.acquire(timeout=poll_seconds if waited else 0)
            break
        except Timeout:
            if not waited:
                waiting()
            waited = True
            if should_stop():
                raise Cancelled from None
    with held:
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock ``path``. Creates no file, and opens no link."""
    if is_link(path) or not path.is_file():
        return False
    try:
        with FileLock(str(path), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to write
        return False
