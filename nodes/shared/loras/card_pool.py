"""Threads of their own for reading LoRA cards: what hangs or takes long there holds up neither ComfyUI's other work nor the browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_THREADS = 4
_Result = TypeVar("_Result")


class CardPool:
    """A few threads; whoever waits for one of them waits for ``seconds`` at most, waiting for a free thread included.

    A read that is not ready by then goes on (a thread cannot be ended), and its result is dropped.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="animelora-card")

    async def read(self, make: Callable[[], _Result]) -> _Result:
        """What ``make`` returns or raises. Raises TimeoutError when it is not ready in time."""
        waiting = asyncio.get_running_loop().run_in_executor(self._threads, make)
        try:
            return await asyncio.wait_for(waiting, self._seconds)
        except asyncio.TimeoutError as error:  # not TimeoutError itself before Python 3.11
            raise TimeoutError(f"not ready in {self._seconds:g} s") from error
