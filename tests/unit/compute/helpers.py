"""What tests of accelerated steps share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.training_helpers import Trained
from trainer.config.run_config import RunConfig
from trainer.launch.prepared_run import prepare_run
from trainer.training.batches import Feed
from trainer.training.distributed import make_accelerator
from trainer.training.job import open_job
from trainer.training.learner import Learner
from trainer.training.parent_channel import Emitter


def same_training(first: Trained, second: Trained, *, loss: float = 1e-5, norm: float = 1e-3) -> None:
    assert first.status == second.status == 0
    assert len(first.steps) == len(second.steps) > 0
    assert [step.loss for step in first.steps] == pytest.approx([step.loss for step in second.steps], rel=loss)
    assert [step.grad_norm for step in first.steps] == pytest.approx([step.grad_norm for step in second.steps], rel=norm)


@contextmanager
def learning(settings: RunConfig) -> Any:
    """A learner and its first portion, as the loop has them."""
    run = prepare_run(settings).folder
    job, start = open_job(run, settings, Emitter(run.events), threading.Event())
    feed = Feed(job)
    feed.fill_caches()
    learner = Learner(job, start, make_accelerator(job))
    with ThreadPoolExecutor(1) as pool:
        yield learner, next(iter(feed.portions(0, learner.timesteps, pool)))
