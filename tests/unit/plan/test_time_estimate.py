"""The estimate of a run's time, from logs whose seconds are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config.run_config import RunConfig, parse
from trainer.plan.time_estimate import estimate_time
from trainer.runs import events
from trainer.runs.run_plan import RunPlan

LOADING, STEP, SAMPLES = 10.0, 2.0, 5.0  # seconds
PLAN = RunPlan(
    images=4,
    buckets={"64x64": 4},
    epochs=3,
    steps=12,
    steps_per_epoch=4,
    trainable_parameters=1,
    modules=1,
    family="sd1",
    device="cpu",
    precision="fp32",
    memory_gb=1.0,
)


def config_of(runs: Path, checkpoint: str = "/models/base.safetensors", **training: object) -> RunConfig:
    """A configuration with absolute paths."""
    data = {"base": {"checkpoint": checkpoint}, "dataset": {"path": "/data"}, "output": {"runs": str(runs)}, "training": training}
    return parse(data)


def log_of(plan: RunPlan = PLAN, *, step: float = STEP, pause: float = 0.0, began: float = 100.0) -> list[events.Event]:
    """The log of a run on a clock that a test can foresee: it loads, trains and makes validation images after each epoch."""
    clock = began
    log: list[events.Event] = [events.Plan(**vars(plan), clock=clock)]
    clock += LOADING
    for number in range(1, plan.steps + 1):
        if number > 1:
            clock += step
        log.append(
            events.Step(
                number, plan.steps, 1, loss=1, loss_average=1, lr=1, grad_norm=1, images_per_second=1, eta=1, memory_gb=1, clock=clock
            )
        )
        if number == 2 and pause:
            log.append(events.Phase(events.PAUSED, clock=clock))
            clock += pause
        if number % plan.steps_per_epoch == 0:
            clock += SAMPLES
            log.append(events.Sample("image.png", "a girl", 1, number, 0, clock=clock))
    return log


def write_run(runs: Path, name: str, config: RunConfig, log: list[events.Event]) -> None:
    """A run folder with this log."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "events.jsonl").write_text("".join(f"{events.encode_event(event)}\n" for event in log))


def test_estimate_of_the_same_run_is_the_time_it_took(tmp_path: Path) -> None:
    write_run(tmp_path, "style-1", config_of(tmp_path), log_of())
    estimate = estimate_time(config_of(tmp_path), PLAN)
    assert estimate is not None and estimate.run == "style-1"
    # 12 steps, of which the log measures 11 intervals; the first ends with the loading
    assert estimate.seconds == pytest.approx(LOADING + 12 * STEP + 3 * SAMPLES, abs=3)


def test_estimate_follows_steps_pixels_and_the_step_to_continue_from(tmp_path: Path) -> None:
    write_run(tmp_path, "style-1", config_of(tmp_path), log_of())
    base = estimate_time(config_of(tmp_path), PLAN)
    larger = estimate_time(config_of(tmp_path), replace(PLAN, buckets={"128x64": 4}))
    later = estimate_time(config_of(tmp_path), PLAN, start_step=8)
    assert base is not None and larger is not None and later is not None
    assert larger.seconds - base.seconds == pytest.approx(12 * STEP)
    assert base.seconds - later.seconds == pytest.approx(8 * STEP + 2 * SAMPLES, abs=2)


def test_pauses_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path, "style-1", config_of(tmp_path), log_of(pause=1000.0))
    estimate = estimate_time(config_of(tmp_path), PLAN)
    assert estimate is not None and estimate.seconds < 100


def test_most_similar_run_is_chosen(tmp_path: Path) -> None:
    write_run(tmp_path, "plain-1", config_of(tmp_path), log_of())
    write_run(tmp_path, "checkpointed-1", config_of(tmp_path, gradient_checkpointing=True), log_of(step=3.0))
    plain = estimate_time(config_of(tmp_path), PLAN)
    checkpointed = estimate_time(config_of(tmp_path, gradient_checkpointing=True), PLAN)
    assert plain is not None and checkpointed is not None
    assert (plain.run, checkpointed.run) == ("plain-1", "checkpointed-1")


def test_no_estimate_without_a_run_on_the_same_base_and_device(tmp_path: Path) -> None:
    assert estimate_time(config_of(tmp_path), PLAN) is None
    write_run(tmp_path, "other-base-1", config_of(tmp_path, "/models/other.safetensors"), log_of())
    write_run(tmp_path, "other-device-1", config_of(tmp_path), log_of(replace(PLAN, device="cuda")))
    write_run(tmp_path, "one-step-1", config_of(tmp_path), log_of(replace(PLAN, steps=1)))
    assert estimate_time(config_of(tmp_path), PLAN) is None


def test_damaged_run_folders_are_skipped(tmp_path: Path) -> None:
    for name, config, log in (("a-1", "{", ""), ("b-1", "[]", "x"), ("c-1", json.dumps({"base": 3}), "{}")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(config)
        (folder / "events.jsonl").write_text(log)
    (tmp_path / "d-1").mkdir()
    (tmp_path / "d-1" / "events.jsonl").mkdir()
    assert estimate_time(config_of(tmp_path), PLAN) is None
