"""Runs a stream of small jobs on all cores with a bounded number of results in memory.

Threads, not processes: Pillow decodes, resizes and encodes without the interpreter's lock, and inside ComfyUI a spawned process would
import ComfyUI's main script again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..devices import cores
from ..errors import Cancelled

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
_AHEAD = 4  # results per worker that may wait for the reader


def ordered_map(
    work: Callable[[_Job], _Result], jobs: Iterable[_Job], *, workers: int | None = None, should_stop: Callable[[], bool] | None = None
) -> Iterator[_Result]:
    """Yield ``work(job)`` for each job in order, at most four per worker ahead of the reader. ``workers`` 0 uses the calling thread.

    Raises Cancelled when ``should_stop`` returns True. Running jobs then end first, and no other job starts.
    """
    if workers == 0:
        for job in jobs:
            _check(should_stop)
            yield work(job)
        return
    count = workers or cores()
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="prepare") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= _AHEAD * count:
                    _check(should_stop)
                    yield waiting.popleft().result()
            while waiting:
                _check(should_stop)
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _check(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise Cancelled("Preparing the dataset was stopped.")
