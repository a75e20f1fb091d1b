"""A child that is asked to stop gets the time to save its state, however long that takes it; one that says nothing does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import events, following, launch
from trainer.config import RunConfig
from trainer.errors import Cancelled
from trainer.runs import RunFolder

from .helpers import configuration, make_dataset

# what a child does once its standard input has ended, after it has told of two steps
_CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from trainer import events
from trainer.child import Emitter
run = Path(sys.argv[-1])
emit = Emitter(run / "events.jsonl")
emit(events.Phase("training", 2, 9))
sys.stdin.read()
{then}
"""
_SAVES = """
emit(events.Phase(events.SAVING, 2, 9))
time.sleep({seconds})
(run / "saved").touch()
emit(events.Stopped(2, "where"))
os._exit(3)
"""
ROOT = Path(launch.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path) -> RunConfig:
    root = tmp_path_factory.mktemp("following")
    return configuration(shallow_checkpoint, make_dataset(root, 2), root / "runs")


@pytest.fixture
def follow(configured: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[RunFolder, list[events.Event]]]:
    """Start a child that does as it is told, stop it once it trains, and return its folder and what was told."""

    def stopped(then: str) -> tuple[RunFolder, list[events.Event]]:
        program = tmp_path / "child.py"
        program.write_text(_CHILD.format(root=str(ROOT), then=then), encoding="utf-8")
        monkeypatch.setattr(launch, "command", lambda run: [sys.executable, str(program), str(run.path)])
        own = configured.model_copy(update={"output": configured.output.model_copy(update={"runs": str(tmp_path / "runs")})})
        told: list[events.Event] = []
        with pytest.raises(Cancelled):
            launch.train(own, on_event=told.append, should_stop=lambda: bool(told), poll_seconds=0.05)
        return launch.prepare_run(own), told

    return stopped


def test_one_that_says_it_is_saving_is_waited_for(follow: Callable[[str], tuple[RunFolder, list[events.Event]]]) -> None:
    seconds = following._HEARD_SECONDS + 1
    run, told = follow(_SAVES.format(seconds=seconds))
    assert (run.path / "saved").is_file()
    assert [event.name for event in told] == ["phase", "phase", "stopped"]
    saving, stopped = told[-2:]
    assert isinstance(saving, events.Phase) and saving.phase == events.SAVING
    assert isinstance(stopped, events.Stopped) and stopped.step == 2
    assert stopped.time - saving.time >= seconds - 0.1, "it was told when all was over"


def test_one_that_says_nothing_is_killed_and_the_user_learns_where_the_run_goes_on(
    follow: Callable[[str], tuple[RunFolder, list[events.Event]]],
) -> None:
    run, told = follow("time.sleep(600)")
    warning, stopped = told[-2:]
    assert isinstance(warning, events.Warning_) and "from the start" in warning.message
    assert isinstance(stopped, events.Stopped) and stopped.step == 0
    assert not (run.path / "saved").exists()


def test_saving_has_an_end_too(follow: Callable[[str], tuple[RunFolder, list[events.Event]]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SAVING_SECONDS", following._HEARD_SECONDS + 0.5)
    run, told = follow("from trainer import resume\nresume.save(run / 'checkpoints', 1, {})\n" + _SAVES.format(seconds=600))
    warning, stopped = told[-2:]
    assert isinstance(warning, events.Warning_) and "from step 1" in warning.message
    assert isinstance(stopped, events.Stopped) and stopped.step == 1
    assert not (run.path / "saved").exists()
