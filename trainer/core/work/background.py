"""Doing something on a thread before it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What ``work`` returns or raises, worked out on a thread of its own from now on. A process that ends does not wait for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._future: Future[T] | None = Future()
        threading.Thread(target=_fulfil, args=(self._future, work), name="ahead", daemon=True).start()

    def take(self) -> T:
        """Wait for the result and let go of it: whoever takes it decides how long it is kept. Can be called once."""
        assert self._future is not None
        future, self._future = self._future, None
        return future.result()


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # raised where the result is taken
        future.set_exception(error)
