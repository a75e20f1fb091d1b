"""Recipes that are ready to train, and the comparison of two runs."""

from __future__ import annotations

import pytest

from tests.unit.training_helpers import Trained
from trainer.config import run_config
from trainer.launch.prepared_run import prepare_run
from trainer.training.batch_loader import StepBatch
from trainer.training.event_writer import EventLog
from trainer.training.recipe import TrainingRecipe
from trainer.training.requests import Requests


def same_training(first: Trained, second: Trained, *, loss: float = 1e-5, norm: float = 1e-3) -> None:
    """Both runs had the same losses and gradient norms, up to these relative differences."""
    assert first.status == second.status == 0
    assert len(first.steps) == len(second.steps) > 0
    assert [step.loss for step in first.steps] == pytest.approx([step.loss for step in second.steps], rel=loss)
    assert [step.grad_norm for step in first.steps] == pytest.approx([step.grad_norm for step in second.steps], rel=norm)


def recipe_before_step_one(settings: run_config.RunConfig) -> tuple[TrainingRecipe, StepBatch]:
    """A recipe that is ready to train, and its first batch."""
    run = prepare_run(settings).folder
    recipe = TrainingRecipe(run, settings, EventLog(run.events), Requests())
    recipe.setup()
    return recipe, next(recipe.batch_loader.steps(0, recipe.model.noise_process, recipe.model.tokenize))
