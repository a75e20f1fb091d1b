"""Requests while a run trains: save, sample, pause, edit prompts, stop after the epoch. The LoRA is that of an undisturbed run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.training_helpers import PROMPTS, Trained, configuration, make_dataset, train_here
from trainer.config.run_config import RunConfig
from trainer.core.errors import Cancelled
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.runs import events, states
from trainer.runs.controls import Control
from trainer.runs.deleting import delete_step
from trainer.runs.event_log import read_events, read_events_of
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_list import saved_at
from trainer.runs.run_times import training_seconds
from trainer.runs.saved_lora import is_undamaged
from trainer.training.event_writer import EventLog
from trainer.training.recipe import TrainingRecipe
from trainer.training.requests import Requests
from trainer.training.run import save_lora_of_state

pytestmark = pytest.mark.slow
EPOCHS, IMAGES = 2, 4
SETTINGS: dict[str, object] = {
    "training.epochs": EPOCHS,
    "training.gradient_accumulation": 1,
    "training.ema_decay": 0.9,
    "network.dropout": 0.2,
    "sample.every_epochs": 1,
    "sample.prompts": PROMPTS[:1],
    "sample.steps": 1,
}


@dataclass
class Watched(EventLog):
    """An event log that calls ``act`` with each event."""

    path: Path
    act: Callable[[events.Event], None]
    seen: list[events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.path)

    def __call__(self, event: events.Event) -> None:
        super().__call__(event)
        self.seen.append(event)
        self.act(event)


@pytest.fixture(scope="module")
def settings(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], RunConfig]:
    """The configuration of the run, in a folder of runs."""
    dataset = make_dataset(tmp_path_factory.mktemp("data"), IMAGES)
    return lambda runs: configuration(shallow_checkpoint, dataset, runs, SETTINGS)


@pytest.fixture(scope="module")
def alone(settings: Callable[[Path], RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run without any request."""
    return train_here(settings(tmp_path_factory.mktemp("alone")))


def requested(config: RunConfig, at: dict[int, list[Control]], *, when_paused: Control | None = None) -> tuple[RunFolder, TrainingRecipe]:
    """Train with requests that arrive while a step (from 1 on) is reported, and while the run is paused."""
    prepared = prepare_run(config)
    write_run_folder(prepared)
    requests = Requests()

    def act(event: events.Event) -> None:
        waiting = at.get(event.step, []) if isinstance(event, events.Step) else []
        if isinstance(event, events.Phase) and event.phase == events.PAUSED and when_paused is not None:
            waiting = [when_paused]
        for control in waiting:
            requests.take_line(control.to_line())

    recipe = TrainingRecipe(prepared.folder, config, Watched(prepared.folder.events, act), requests)
    recipe.train()
    return prepared.folder, recipe


def test_saving_sampling_and_pausing_leave_the_lora_as_it_is(settings: Callable[[Path], RunConfig], alone: Trained, tmp_path: Path) -> None:
    asked = {2: [Control(action="save_now")], 3: [Control(action="sample_now")], 6: [Control(action="pause"), Control(action="save_now")]}
    run, _ = requested(settings(tmp_path), asked, when_paused=Control(action="resume"))
    assert run.lora.read_bytes() == alone.run.lora.read_bytes()
    assert sorted(states.saved_steps(run.checkpoints)) == [2, 6, EPOCHS * IMAGES]
    loras = [Path(event.lora) for event in read_events_of(run.events, events.Checkpoint)]
    assert [lora.parent.name for lora in loras] == [f"step-{step:06d}" for step in (2, 3, 4, 6, 8)], "4 and 8 end an epoch"
    assert all(map(is_undamaged, loras))
    samples = read_events_of(run.events, events.Sample)
    assert [(sample.epoch, sample.step) for sample in samples] == [(0, 0), (1, 3), (1, 4), (2, 8)]
    assert len({sample.path for sample in samples if Path(sample.path).is_file()}) == 4
    log = read_events(run.events)
    assert [event.action for event in log if isinstance(event, events.Requested)] == [
        *("save_now", "sample_now", "pause", "save_now", "resume"),
    ]
    phases = [event.phase for event in log if isinstance(event, events.Phase)]
    assert phases.index(events.PAUSED) < len(phases) - 1 - phases[::-1].index("training")


def test_every_set_of_validation_images_has_a_lora_and_only_checkpoints_have_a_state(alone: Trained, tmp_path: Path) -> None:
    samples = {event.step for event in read_events_of(alone.run.events, events.Sample)}
    assert samples == {0, 4, 8}
    assert saved_at(alone.run) == [4, 8], "the base model has no LoRA"
    assert states.saved_steps(alone.run.checkpoints) == [8]
    assert states.newest_step(alone.run.checkpoints) == 8
    epoch = states.state_folder(alone.run.checkpoints, 4)
    (lora,) = epoch.glob("*.safetensors")
    assert is_undamaged(lora)
    assert lora.read_bytes() != alone.run.lora.read_bytes()

    copied = shutil.copytree(alone.run.path, tmp_path / alone.run.path.name)
    run = RunFolder(copied, alone.run.name)
    for name in states.STATE_FILES:
        (states.state_folder(run.checkpoints, 8) / name).unlink()
    assert states.newest_step(run.checkpoints) == 0, "a LoRA without a state is nothing to resume from"
    delete_step(run, 4)
    assert saved_at(run) == [8]
    assert len(list(run.samples.glob("*.png"))) == 3, "the images stay"


def test_a_pause_does_not_count_as_training_time(tmp_path: Path) -> None:
    clocks = {
        0.0: events.Phase("training"),
        5.0: events.Phase(events.PAUSED),
        100.0: events.Phase("training"),
        103.0: events.Phase("exporting"),
    }
    log = tmp_path / "events.jsonl"
    lines = [events.encode_event(type(event)(event.phase, clock=clock + 1)) for clock, event in clocks.items()]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert training_seconds(log) == 5.0 + 3.0


def test_a_stop_after_the_epoch_ends_at_its_last_step_and_resumes_to_the_same_lora(
    settings: Callable[[Path], RunConfig], alone: Trained, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        requested(settings(tmp_path), {2: [Control(action="stop_after_epoch")]})
    run = prepare_run(settings(tmp_path)).folder
    assert [event.step for event in read_events_of(run.events, events.Step)] == [1, 2, 3, 4]
    assert [(sample.epoch, sample.step) for sample in read_events_of(run.events, events.Sample)] == [(0, 0), (1, 4)]
    again = train_here(settings(tmp_path))
    assert again.run.lora.read_bytes() == alone.run.lora.read_bytes()


def test_a_stop_after_the_last_epoch_finishes_the_run(settings: Callable[[Path], RunConfig], alone: Trained, tmp_path: Path) -> None:
    run, _ = requested(settings(tmp_path), {6: [Control(action="stop_after_epoch")]})
    assert run.lora.read_bytes() == alone.run.lora.read_bytes()


def test_edited_prompts_count_from_the_next_images_on(settings: Callable[[Path], RunConfig], alone: Trained, tmp_path: Path) -> None:
    edited = Control(action="edit_prompts", prompts=("a dog --s 2", "a (bird:1.2)"))
    run, recipe = requested(settings(tmp_path), {5: [edited]})
    samples = [(sample.epoch, sample.prompt) for sample in read_events_of(run.events, events.Sample)]
    assert samples == [(0, PROMPTS[0]), (1, PROMPTS[0]), (2, "a dog"), (2, "a (bird:1.2)")]
    (event,) = read_events_of(run.events, events.Requested)
    assert (event.step, event.prompts) == (5, list(edited.prompts))
    expected = alone.state(EPOCHS * IMAGES)["ema"]
    for name, values in recipe.state.weights().items():
        assert values.equal(expected[name]), name


def test_a_request_that_fails_is_a_warning(
    settings: Callable[[Path], RunConfig], alone: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, epoch: int) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("trainer.training.monitoring.validation_images.ValidationImages.make_now", fail)
    run, _ = requested(settings(tmp_path), {3: [Control(action="sample_now")]})
    assert any("A request could not be met" in event.message for event in read_events_of(run.events, events.Warning_))
    assert run.lora.read_bytes() == alone.run.lora.read_bytes()


def test_a_stop_while_images_are_made_and_before_anything_is_learned_keeps_the_state(
    settings: Callable[[Path], RunConfig], tmp_path: Path
) -> None:
    prepared = prepare_run(settings(tmp_path))
    write_run_folder(prepared)
    recipe = TrainingRecipe(prepared.folder, prepared.config, EventLog(prepared.folder.events), Requests())
    checkpointer = recipe.setup()
    recipe.state.step = 3
    with recipe.state.averaged(), recipe.lock:
        checkpointer.save_now()
        save_lora_of_state(recipe, checkpointer)
    assert states.saved_steps(prepared.folder.checkpoints) == [3]
    assert not list(prepared.folder.checkpoints.rglob("*.safetensors"))  # it would be all zero
    assert "No LoRA file was written at step 3" in read_events_of(prepared.folder.events, events.Warning_)[-1].message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"stop",
        b'{"action": "delete"}',
        b'{"action": "pause", "prompts": ["x"]}',
        b'{"action": "edit_prompts"}',
        b'{"action": "edit_prompts", "prompts": ["x --s many"]}',
        b'{"action": "save_now", "path": "/etc"}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_request_is_dropped(line: bytes) -> None:
    requests = Requests()
    requests.take_line(line)
    assert list(requests.next(lambda: None)) == []


def test_a_stop_ends_a_pause() -> None:
    requests = Requests()
    requests.take_line(Control(action="pause").to_line())
    assert [control.action for control in requests.next(requests.stop)] == ["pause"]
    assert requests.is_stopped()


def test_a_run_that_cannot_pause_goes_on() -> None:
    requests = Requests(can_pause=False)
    requests.take_line(Control(action="pause").to_line())
    assert [control.action for control in requests.next(lambda: pytest.fail("it waits"))] == ["pause"]
