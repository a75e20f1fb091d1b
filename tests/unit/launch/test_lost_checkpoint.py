"""A model checkpoint that is deleted or replaced during a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.launch.log import resumed_at
from tests.unit.training_helpers import UNDISTURBED, configuration, train_here
from trainer.runs import events
from trainer.training.recipe import TrainingRecipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_checkpoint_that_disappears_during_a_run_is_reported_and_no_step_is_lost(
    what: str, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: dict[str, object] = {"sample.every_epochs": 1, "sample.prompts": ["a girl"], "sample.steps": 1}
    settings = {**UNDISTURBED, **samples, "training.epochs": 2, "training.max_steps": 8, "training.checkpoint_every": 4}
    whole = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path / "whole", settings))
    assert whole.status == 0
    checkpoint, aside = tmp_path / "mine.safetensors", tmp_path / "aside.safetensors"
    shutil.copyfile(shallow_checkpoint, checkpoint)
    update_weights = TrainingRecipe.update_weights
    done: set[int] = set()

    def updated(self: TrainingRecipe, *step: Any) -> None:
        update_weights(self, *step)
        if self.state.step == 5 and not done:
            done.add(5)
            checkpoint.rename(aside)
            if what == "replaced":
                checkpoint.write_bytes(bytes(aside.stat().st_size))
        if self.state.step == 7:
            os.utime(checkpoint)  # the same file with another date

    monkeypatch.setattr(TrainingRecipe, "update_weights", updated)
    config = configuration(checkpoint, dataset_folder, tmp_path / "runs", {**settings, "name": "style"})
    failed = train_here(config)
    error = failed.told[-1]
    assert isinstance(error, events.Error)
    assert error.kind == "checkpoint"
    assert str(checkpoint) in error.message
    assert f"was {what}" in error.message
    assert "Put " in error.hint
    assert "resumes at step 6" in error.hint
    aside.rename(checkpoint)
    again = train_here(config)
    assert again.status == 0
    assert resumed_at(again.told) == [0, 6]
    tensors = [lora.read_bytes()[8 + int.from_bytes(lora.read_bytes()[:8], "little") :] for lora in (again.run.lora, whole.run.lora)]
    assert tensors[0] == tensors[1]


def test_a_run_without_validation_images_finishes_without_its_checkpoint(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "mine.safetensors"
    shutil.copyfile(shallow_checkpoint, checkpoint)
    update_weights = TrainingRecipe.update_weights

    def updated(self: TrainingRecipe, *step: Any) -> None:
        update_weights(self, *step)
        checkpoint.unlink(missing_ok=True)

    monkeypatch.setattr(TrainingRecipe, "update_weights", updated)
    trained = train_here(configuration(checkpoint, dataset_folder, tmp_path / "runs", {**UNDISTURBED, "training.max_steps": 2}))
    assert trained.status == 0
