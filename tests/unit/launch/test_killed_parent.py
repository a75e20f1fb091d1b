"""The parent is killed and the run is started again at once, while the child of the first start still saves its state."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.children.processes import of_run
from tests.unit.launch.helpers import half_files
from tests.unit.training_helpers import UNDISTURBED, configuration
from trainer.config.run_config import RunConfig
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events
from trainer.runs.event_log import read_events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]  # the child of the killed parent is an ordinary one
ROOT = Path(launcher.__file__).resolve().parents[2]
SETTINGS: dict[str, object] = {**UNDISTURBED, "training.checkpoint_every": 1000}  # only the stop writes a state
HELD_AT = 3  # the step after which the first child is asked to stop

# A parent, and a child that trains HELD_AT steps. Asked to stop, the child writes half of its state and waits for a file to write the rest.
_PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from trainer.config import run_config
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
launcher.command = lambda run: [sys.executable, {child!r}, "--run", str(run.path)]
launcher.train(prepare_run(run_config.load_config(Path({config!r}))))
"""
_CHILD = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
from trainer.runs import states
from trainer.training import run
from trainer.training.recipe import TrainingRecipe
compute, write = TrainingRecipe.compute_gradients, states.write_sealed

def compute_gradients(self, batch):
    if self.state.step == {held_at}:
        threading.Event().wait()  # until the process ends: the state is saved by another thread
    return compute(self, batch)

def write_sealed(path, values):
    Path({saving!r}).touch()
    while not Path({finish!r}).exists():
        time.sleep(0.02)
    write(path, values)

TrainingRecipe.compute_gradients, states.write_sealed = compute_gradients, write_sealed
{then}
sys.exit(run.train_run(Path(sys.argv[-1]), watch_stdin=True))
"""


class KilledParent:
    """A parent that was killed in mid-run, whose child is still saving until ``let_save_end``."""

    def __init__(self, config: RunConfig, folder: Path, then: str = "") -> None:
        self.run = prepare_run(config).folder
        saving, self._finish = folder / "saving", folder / "finish"
        child, parent, settings = folder / "child.py", folder / "parent.py", folder / "config.json"
        names = {"root": str(ROOT), "saving": str(saving), "finish": str(self._finish), "held_at": HELD_AT, "then": then}
        child.write_text(_CHILD.format(**names), encoding="utf-8")
        parent.write_text(_PARENT.format(root=str(ROOT), child=str(child), config=str(settings)), encoding="utf-8")
        settings.write_text(config.to_json(), encoding="utf-8")
        process = subprocess.Popen([sys.executable, str(parent)])
        while HELD_AT not in self.steps():
            assert process.poll() is None, self.run.log.read_text(encoding="utf-8")
            time.sleep(0.02)
        process.kill()
        process.wait()
        while not saving.exists():
            assert of_run(self.run.path), self.run.log.read_text(encoding="utf-8")
            time.sleep(0.02)

    def steps(self) -> list[int]:
        """The steps that the run's log holds, in order."""
        return [event.step for event in self._events() if isinstance(event, events.Step)]

    def start_steps(self) -> list[int]:
        """The step at which each start of the run began."""
        return [event.start_step for event in self._events() if isinstance(event, events.Plan)]

    def let_save_end(self) -> None:
        """Let the child write the rest of its state."""
        self._finish.touch()

    def _events(self) -> list[events.Event]:
        return read_events(self.run.events) if self.run.events.exists() else []


@pytest.fixture
def config(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> RunConfig:
    return configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", SETTINGS)


def test_next_start_waits_for_the_child_of_a_killed_parent_and_resumes_from_its_state(
    config: RunConfig, expected: bytes, tmp_path: Path
) -> None:
    killed = KilledParent(config, tmp_path)
    received: list[events.Event] = []

    def on_event(event: events.Event) -> None:
        received.append(event)
        killed.let_save_end()

    result = launcher.train(prepare_run(config), on_event=on_event)
    assert isinstance(received[0], events.Phase) and received[0].phase == events.WAITING
    assert killed.start_steps() == [0, HELD_AT]
    assert killed.steps() == [1, 2, 3, 4, 5, 6]
    assert result.lora.read_bytes() == expected
    assert not half_files(killed.run.path)


def test_child_of_a_killed_parent_that_cannot_finish_saving_ends(config: RunConfig, expected: bytes, tmp_path: Path) -> None:
    killed = KilledParent(config, tmp_path, then="run._SAVING_SECONDS = 1.0")
    result = launcher.train(prepare_run(config))
    assert killed.start_steps() == [0, 0]
    assert result.lora.read_bytes() == expected
    assert not half_files(killed.run.path)
