"""All cores for a stream of small jobs, with a bounded number of them in memory.

Threads, not processes: Pillow decodes, resizes and encodes without the interpreter's lock, and inside ComfyUI a spawned
process would import ComfyUI's main script again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..devices import cores
from ..errors import Cancelled

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    work: Callable[[T], R], jobs: Iterable[T], *, workers: int | None = None, should_stop: Callable[[], bool] | None = None
) -> Iterator[R]:
    """``work`` of each job, in the jobs' order, at most a few ahead of the reader. ``workers`` 0: in the calling thread.

    Raises Cancelled when ``should_stop`` says so; jobs under way end first, none is begun.
    """
    if workers == 0:
        for job in jobs:
            _check(should_stop)
            yield work(job)
        return
    count = workers or cores()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="prepare") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= 4 * count:
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
