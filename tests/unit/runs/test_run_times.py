"""A clock that is set during a run, and a run that passes midnight: the same bytes and the right duration."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training_helpers import UNDISTURBED, configuration, thrown_back, train_here
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_times import start_day, training_seconds
from trainer.training.recipe import TrainingRecipe

YEARS = 57 * 365 * 86_400.0
DAY = 86_400.0
SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Set the clock of this process forward by some seconds."""
    real, forward = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + forward[0])
    return lambda seconds: forward.__setitem__(0, seconds)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [YEARS, -YEARS], ids=["forward", "back"])
def test_setting_the_clock_during_a_run_changes_neither_seconds_nor_bytes(
    jump: float,
    set_clock: SetClock,
    shallow_checkpoint: Path,
    dataset_folder: Path,
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update_weights = TrainingRecipe.update_weights

    def updated(self: TrainingRecipe, *step: Any) -> None:
        update_weights(self, *step)
        if self.state.step == 3:
            set_clock(jump)

    monkeypatch.setattr(TrainingRecipe, "update_weights", updated)
    began = time.monotonic()
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path, UNDISTURBED))
    took = time.monotonic() - began
    found = trained.run.finished()
    assert found is not None
    assert 0 < found.seconds <= took
    assert trained.run.lora.read_bytes() == expected


@pytest.mark.slow
def test_resuming_and_exporting_on_other_days_gives_the_same_bytes(
    set_clock: SetClock, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path
) -> None:
    first = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path / "first", UNDISTURBED))
    config = thrown_back(first, tmp_path / "second", 2)
    set_clock(DAY)
    resumed = train_here(config)
    assert [event.start_step for event in resumed.told if isinstance(event, events.Plan)] == [0, 2]
    assert resumed.run.lora.read_bytes() == expected
    for days, recorded in ((2, True), (3, False)):  # earlier versions stored no day: it is taken from the log
        set_clock(days * DAY)
        (resumed.run.lora).write_bytes(b"damaged")
        if not recorded:
            resumed.run.started.unlink()
        assert train_here(config).run.lora.read_bytes() == expected


def test_the_day_is_that_of_the_first_start(tmp_path: Path, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    run = RunFolder(tmp_path, "style")
    moment = 20_000 * DAY + 86_399.0
    run.events.write_text(events.encode_event(events.Phase("loading", time=moment)) + "\n", encoding="utf-8")
    set_clock(YEARS)
    assert start_day(run, record=False) == 20_000 * DAY
    assert not run.started.exists()
    assert start_day(run, record=True) == 20_000 * DAY
    run.events.unlink()
    assert start_day(run, record=True) == 20_000 * DAY
    run.started.write_text(run.started.read_text(encoding="utf-8").replace("17280", "17281"), encoding="utf-8")
    run.events.write_text(events.encode_event(events.Phase("loading", time=moment)) + "\n", encoding="utf-8")
    assert start_day(run, record=True) == 20_000 * DAY, "a damaged record is used"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(5 * DAY + 7)))
    assert start_day(run, record=True) == 5 * DAY


def log(path: Path, *logged: events.Event, without_clock: bool = False) -> Path:
    lines = [events.encode_event(event) for event in logged]
    if without_clock:
        lines = [line.replace('"clock"', '"unknown"') for line in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_training_seconds_sum_all_starts_without_the_pauses_between_them(tmp_path: Path) -> None:
    plan: dict[str, Any] = {
        "images": 1,
        "buckets": {},
        "epochs": 1,
        "steps": 1,
        "steps_per_epoch": 1,
        "trainable_parameters": 1,
        "modules": 1,
    }
    logged: list[events.Event] = []
    for clock, moment in ((100.0, 5e8), (50.0, 9e8)):  # the machine was switched off between them
        logged += [
            events.Phase("loading", time=moment, clock=clock),
            events.Plan(**plan, family="sd1", device="cpu", precision="fp32", memory_gb=1.0, time=moment + 1, clock=clock + 1),
            events.Phase("training", time=moment + 2 + YEARS, clock=clock + 2),
        ]
    assert training_seconds(log(tmp_path / "e", *logged)) == 4.0
    # in logs of earlier versions a jump counts no longer than the longest allowed silence
    assert training_seconds(log(tmp_path / "old", *logged, without_clock=True)) == 2.0 + 2 * 7200.0
    assert {event.clock for event in read_events(tmp_path / "old")} == {0.0}


def test_a_published_lora_made_again_on_another_day_is_found(
    set_clock: SetClock, undisturbed: RunFolder, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.path.parent, tmp_path / "runs")
    settings = {**UNDISTURBED, "output.publish": str(tmp_path / "loras")}
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", settings)
    launcher.train(prepare_run(config))
    run = prepare_run(config).folder
    run.result.unlink()
    run.lora.unlink()
    set_clock(DAY)
    assert train_here(config).status == 0
    assert launcher.train(prepare_run(config)).lora == tmp_path / "loras" / "style.safetensors"
    assert [path.name for path in (tmp_path / "loras").iterdir()] == ["style.safetensors"]
