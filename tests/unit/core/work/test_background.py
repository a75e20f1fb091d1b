"""A background task keeps its result only until it is taken, and passes errors on."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from trainer.core.work.background import BackgroundTask


class Result:
    """A result that can be watched."""


def test_take_result_waits_and_releases_the_result() -> None:
    may_finish = threading.Event()

    def work() -> Result:
        may_finish.wait(60)
        return Result()

    task = BackgroundTask(work)
    may_finish.set()
    result = task.take_result()
    watched = weakref.ref(result)
    del result
    gc.collect()
    assert watched() is None, "the weights would stay in memory for the whole run"


def test_take_result_raises_the_error_of_the_work() -> None:
    def work() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        BackgroundTask(work).take_result()
