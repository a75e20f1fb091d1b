"""Loading the UNet in the background changes no loss, and is left out if memory is short."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.families import BaseCheckpoint
from trainer.families.stable_diffusion import ldm_configs
from trainer.runs import events


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that read a UNet."""
    threads: list[str] = []
    tensors = BaseCheckpoint.tensors

    def spy(self: BaseCheckpoint, selects: Any, *arguments: Any, **options: Any) -> Any:
        if selects(f"{ldm_configs.UNET}out.2.weight") and not selects(f"{ldm_configs.VAE}encoder.conv_in.weight"):
            threads.append(threading.current_thread().name)
        return tensors(self, selects, *arguments, **options)

    monkeypatch.setattr(BaseCheckpoint, "tensors", spy)
    return threads


def train_in_new_folder(checkpoint: Path, dataset: Path, runs: Path) -> Trained:
    trained = train_here(configuration(checkpoint, dataset, runs))
    assert isinstance(trained.told[-1], events.Done), trained.told[-1]
    shutil.rmtree(trained.run.path)
    return trained


@pytest.mark.seconds
def test_the_unet_is_loaded_in_the_background_once_images_are_cached(shallow_checkpoint: Path, tmp_path: Path, read: list[str]) -> None:
    dataset = make_dataset(tmp_path)
    cold = train_in_new_folder(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread"], "the VAE is read first, and memory may not hold both"
    warm = train_in_new_folder(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread", "background task"]
    assert [step.loss for step in warm.steps] == [step.loss for step in cold.steps]


@pytest.mark.seconds
def test_nothing_is_loaded_in_the_background_if_memory_is_short(
    shallow_checkpoint: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path)
    train_in_new_folder(shallow_checkpoint, dataset, tmp_path / "runs")
    memory = psutil.virtual_memory()
    size = shallow_checkpoint.stat().st_size
    short = SimpleNamespace(total=memory.total, available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: short)
    train_in_new_folder(shallow_checkpoint, dataset, tmp_path / "runs")
    assert read == ["MainThread", "MainThread"]
