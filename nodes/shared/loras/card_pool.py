"""Separate threads for reading LoRA cards, so that a slow or hanging disk blocks neither ComfyUI nor the browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_THREADS = 4
_Result = TypeVar("_Result")


class CardPool:
    """A few threads. Callers wait at most ``seconds`` for a result, including the time until a thread is free.

    A read that takes longer continues, because a thread cannot be stopped, but its result is dropped.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="animelora-card")

    async def read(self, make: Callable[[], _Result]) -> _Result:
        """The result of ``make``, run in one of the threads. Raises TimeoutError when it takes too long."""
        waiting = asyncio.get_running_loop().run_in_executor(self._threads, make)
        try:
            return await asyncio.wait_for(waiting, self._seconds)
        except asyncio.TimeoutError as error:  # not TimeoutError itself before Python 3.11
            raise TimeoutError(f"not ready in {self._seconds:g} s") from error
