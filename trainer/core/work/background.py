"""Starting work on a thread before its result is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class BackgroundTask(Generic[_Result]):
    """Runs ``work`` on a new daemon thread, for which a process that ends does not wait."""

    def __init__(self, work: Callable[[], _Result]) -> None:
        self._future: Future[_Result] | None = Future()
        threading.Thread(target=_run, args=(self._future, work), name="background task", daemon=True).start()

    def take_result(self) -> _Result:
        """Wait for the result and release it, so that the caller decides how long it stays in memory. Raises what ``work`` raised.

        Can be called once.
        """
        assert self._future is not None
        future, self._future = self._future, None
        return future.result()


def _run(future: Future[_Result], work: Callable[[], _Result]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # raised again in ``take_result``
        future.set_exception(error)
