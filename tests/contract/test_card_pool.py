"""Cards of LoRAs are read in separate threads, and a hanging one does not block the others."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from types import ModuleType

import pytest

Helper = Callable[[str], ModuleType]


def test_hanging_read_times_out_and_the_next_one_is_answered(helper: Helper) -> None:
    release = threading.Event()

    async def both() -> str:
        pool = helper("loras.card_pool").CardPool(seconds=0.05)
        with pytest.raises(TimeoutError):
            await pool.read(release.wait)
        patient = helper("loras.card_pool").CardPool(seconds=60)
        hanging = asyncio.ensure_future(patient.read(release.wait))
        name: str = await patient.read(lambda: threading.current_thread().name)
        assert not hanging.done()
        release.set()
        await hanging
        return name

    try:
        assert asyncio.run(both()).startswith("animelora-card")
    finally:
        release.set()


def test_error_of_a_read_reaches_the_caller(helper: Helper) -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        asyncio.run(helper("loras.card_pool").CardPool().read(fail))


def test_four_cards_are_read_at_once_and_a_request_waits_twenty_seconds(helper: Helper) -> None:
    pool_class = helper("loras.card_pool").CardPool
    assert inspect.signature(pool_class).parameters["seconds"].default == 20
    release, started = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        started.release()
        release.wait()

    async def six() -> int:
        pool = pool_class()
        reads = [asyncio.ensure_future(pool.read(hang)) for _ in range(6)]
        await asyncio.sleep(0)
        running = [await asyncio.to_thread(started.acquire, timeout=timeout) for timeout in (30, 30, 30, 30, 0.2)]
        release.set()
        await asyncio.gather(*reads)
        return sum(running)

    try:
        assert asyncio.run(six()) == 4
    finally:
        release.set()
