"""What is done ahead is done once, on a thread, and only where it costs no memory that others need; the numbers stay the same."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.core.work.background import Ahead
from trainer.families import BaseCheckpoint
from trainer.families.stable_diffusion import ldm_configs
from trainer.runs import events


class Kept:
    """Something to hold."""


def test_a_result_is_waited_for_and_let_go_of() -> None:
    may_finish = threading.Event()

    def work() -> Kept:
        may_finish.wait(60)
        return Kept()

    ahead = Ahead(work)
    may_finish.set()
    result = ahead.take()
    watched = weakref.ref(result)
    del result
    gc.collect()
    assert watched() is None, "whatever was read would stay in memory for the whole run"


def test_an_error_is_raised_where_the_result_is_taken() -> None:
    def work() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Ahead(work).take()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that read a UNet."""
    threads: list[str] = []
    tensors = BaseCheckpoint.tensors

    def noted(self: BaseCheckpoint, wanted: Any, *given: Any, **more: Any) -> Any:
        if wanted(f"{ldm_configs.UNET}out.2.weight") and not wanted(f"{ldm_configs.VAE}encoder.conv_in.weight"):
            threads.append(threading.current_thread().name)
        return tensors(self, wanted, *given, **more)

    monkeypatch.setattr(BaseCheckpoint, "tensors", noted)
    return threads


def trained_anew(checkpoint: Path, dataset: Path, runs: Path) -> Trained:
    trained = train_here(configuration(checkpoint, dataset, runs))
    assert isinstance(trained.told[-1], events.Done), trained.told[-1]
    shutil.rmtree(trained.run.path)
    return trained


def test_the_unet_is_read_ahead_once_pictures_are_cached(shallow_checkpoint: Path, tmp_path: Path, read: list[str]) -> None:
    dataset = make_dataset(tmp_path)
    cold = trained_anew(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread"], "the VAE comes first, and memory may not hold both"
    warm = trained_anew(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread", "ahead"]
    assert [step.loss for step in warm.steps] == [step.loss for step in cold.steps]


def test_where_memory_is_short_nothing_is_read_ahead(
    shallow_checkpoint: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path)
    trained_anew(shallow_checkpoint, dataset, tmp_path / "runs")
    memory = psutil.virtual_memory()
    size = shallow_checkpoint.stat().st_size
    short = SimpleNamespace(total=memory.total, available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: short)
    trained_anew(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread", "MainThread"]
