"""Whole runs in a child: finished, found again, stopped, killed, resumed. The files are identical."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.tools.children.processes import of_run
from tests.unit.training_helpers import PROMPTS, configuration, train_here
from trainer.config.run_config import RunConfig
from trainer.core.errors import Cancelled, UserError
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events, states
from trainer.runs.controls import Control
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder, RunResult
from trainer.runs.saved_lora import is_undamaged

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
EPOCHS, IMAGES = 3, 6
MODULES = 72  # of the shallow checkpoint
STEPS = EPOCHS * IMAGES
SETTINGS: dict[str, object] = {
    "training.epochs": EPOCHS,
    "training.gradient_accumulation": 1,
    "training.checkpoint_every": 2,
    "sample.every_epochs": 1,
    "sample.prompts": PROMPTS[:1],
    "sample.steps": 1,
    "output.tensorboard": True,
}


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run and its events."""

    config: RunConfig
    result: RunResult
    told: list[events.Event]

    @property
    def steps(self) -> list[events.Step]:
        return [event for event in self.told if isinstance(event, events.Step)]


@pytest.fixture(scope="module")
def finished(shallow_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that other runs are compared with."""
    root = tmp_path_factory.mktemp("uninterrupted")
    config = configuration(shallow_checkpoint, dataset_folder, root / "runs", {**SETTINGS, "output.publish": str(root / "loras")})
    received: list[events.Event] = []
    return Finished(config, launcher.train(prepare_run(config), on_event=received.append), received)


def elsewhere(finished: Finished, folder: Path, **output: object) -> RunConfig:
    """The configuration of the same run in another folder."""
    data = finished.config.model_dump()
    data["output"] = {"runs": str(folder), "tensorboard": False, **output}
    return RunConfig.model_validate(data)


def wait_until_gone(run: RunFolder, seconds: float) -> bool:
    """Whether every process of ``run`` ended within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not of_run(run.path):
            return True
        time.sleep(0.2)
    return False


def test_a_run_ends_with_done_and_a_lora_that_is_not_empty(finished: Finished) -> None:
    assert isinstance(finished.told[-1], events.Done)
    assert [step.step for step in finished.steps] == list(range(1, STEPS + 1))
    assert not finished.result.reused
    tensors = load_file(str(finished.result.lora))
    assert len(tensors) == 3 * MODULES
    assert all(np.isfinite(tensor.float().numpy()).all() for tensor in tensors.values())
    assert any(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_up" in name)


def test_the_parent_gets_every_event_of_the_log(finished: Finished) -> None:
    assert read_events(finished.result.run_dir / "events.jsonl") == finished.told


def test_the_lora_is_published_unchanged(finished: Finished) -> None:
    assert finished.result.lora.parent == Path(finished.config.output.publish)
    assert finished.result.lora.name == "style.safetensors"
    assert finished.result.lora.read_bytes() == (finished.result.run_dir / "style.safetensors").read_bytes()


def test_validation_images_are_made_before_the_first_step_and_after_each_epoch(finished: Finished) -> None:
    assert [(image.epoch, image.step, image.prompt) for image in finished.result.samples] == [
        (epoch, epoch * IMAGES, PROMPTS[0]) for epoch in range(EPOCHS + 1)
    ]
    pictures = [np.asarray(Image.open(image.path)) for image in finished.result.samples]
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[-1])  # the LoRA is in the last one


def test_the_loss_curve_is_an_image_of_the_documented_size(finished: Finished) -> None:
    with Image.open(finished.result.loss_curve) as picture:
        assert (picture.format, picture.size) == ("PNG", (1024, 576))
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20  # lines, not an empty frame


def test_tensorboard_has_the_values_of_the_event_stream(finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(finished.result.run_dir / "tensorboard"))
    log.Reload()
    for tag, attribute in (("loss", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm"), ("loss/average", "loss_average")):
        scalars = {scalar.step: scalar.value for scalar in log.Scalars(tag)}
        assert scalars == pytest.approx({step.step: getattr(step, attribute) for step in finished.steps}, rel=1e-6)


def test_a_finished_run_is_found_again_after_another_run(finished: Finished, shallow_checkpoint: Path, dataset_folder: Path) -> None:
    runs = Path(finished.config.output.runs)
    another = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"training.max_steps": 1}))
    assert another.status == 0
    assert another.run.path != finished.result.run_dir
    received: list[events.Event] = []
    again = launcher.train(prepare_run(finished.config), on_event=received.append)
    assert again.reused
    assert not received  # no child was started
    assert (again.lora, again.samples, again.steps) == (finished.result.lora, finished.result.samples, STEPS)


def test_a_deleted_published_file_is_restored_without_training(finished: Finished) -> None:
    content = finished.result.lora.read_bytes()
    finished.result.lora.unlink()
    assert launcher.train(prepare_run(finished.config)).reused
    assert finished.result.lora.read_bytes() == content


@pytest.mark.usefixtures("quick_children")
def test_a_run_that_was_stopped_and_resumed_elsewhere_gives_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    config = elsewhere(finished, tmp_path)
    run = prepare_run(config).folder
    received: list[events.Event] = []

    def far_enough() -> bool:
        return any(isinstance(event, events.Step) and event.step >= 5 for event in received)

    def ask(event: events.Event) -> None:
        received.append(event)
        if isinstance(event, events.Step) and event.step == 1:
            controls.put(Control(action="pause"))
            controls.put(Control(action="save_now"))
            controls.put(Control(action="resume"))

    controls: launcher.Controls = SimpleQueue()
    with pytest.raises(Cancelled):
        launcher.train(prepare_run(config), on_event=ask, should_stop=far_enough, controls=controls)
    assert not of_run(run.path)
    assert [event.action for event in received if isinstance(event, events.Requested)] == ["pause", "save_now", "resume"]
    assert received == read_events(run.events), "events after the stop was requested are missing"
    assert isinstance(received[-1], events.Stopped)
    assert not run.result.exists()
    saved, _ = states.newest(run.checkpoints)
    assert saved is not None and saved.step >= 5
    assert is_undamaged(saved.path / f"style-{saved.step:06d}.safetensors")  # a stop leaves a LoRA of that moment

    result = launcher.train(prepare_run(config), on_event=received.append)
    second = [event for event in received if isinstance(event, events.Plan)][-1]
    assert second.start_step == saved.step
    assert result.lora.read_bytes() == finished.result.lora.read_bytes()
    assert [image.epoch for image in result.samples] == list(range(EPOCHS + 1))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_child_is_reported_and_the_run_resumes_past_a_damaged_state(finished: Finished, tmp_path: Path) -> None:
    config = elsewhere(finished, tmp_path)
    run = prepare_run(config).folder

    def kill(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 7:
            (process,) = of_run(run.path)  # accelerate's launcher runs in the training process, not around it
            process.send_signal(signal.SIGKILL)

    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=kill)
    assert caught.value.kind == "child"
    assert "killed by SIGKILL" in caught.value.message
    assert "memory" in caught.value.hint
    assert not of_run(run.path)

    newest, _ = states.newest(run.checkpoints)
    assert newest is not None and newest.step >= 4
    state = newest.path / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    before, _ = states.newest(run.checkpoints)
    assert before is not None and before.step == newest.step - 2

    resumed = train_here(config)
    assert [event.start_step for event in resumed.told if isinstance(event, events.Plan)] == [0, before.step]
    assert resumed.run.lora.read_bytes() == finished.result.lora.read_bytes()


def command_line(config: RunConfig, path: Path) -> list[str]:
    """The command line that trains ``config``."""
    path.write_text(config.to_json(), encoding="utf-8")
    return [sys.executable, str(ROOT / "trainer"), "train", str(path), "--json"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_child_ends_with_its_parent_and_only_one_of_two_parents_trains_a_run(finished: Finished, tmp_path: Path) -> None:
    data: dict[str, Any] = json.loads(elsewhere(finished, tmp_path / "runs").to_json())
    data["training"]["checkpoint_every"] = 1000  # only a stop can write a state
    data["sample"]["every_epochs"] = 0
    config = RunConfig.model_validate(data)
    run = prepare_run(config).folder
    command = command_line(config, tmp_path / "config.json")

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            event = events.decode_event(line)
            if isinstance(event, events.Step) and event.step >= 3:
                break
        parent.kill()
    assert wait_until_gone(run, 120)
    saved, _ = states.newest(run.checkpoints)
    assert saved is not None and saved.step >= 3

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("found, already trained" in text for text in outputs) == [False, True]
    plans = [event.start_step for event in read_events(run.events) if isinstance(event, events.Plan)]
    assert plans == [0, saved.step]


@pytest.mark.usefixtures("quick_children")
def test_a_nan_loss_ends_the_run_with_a_hint(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(str(shallow_checkpoint))
    weights["model.diffusion_model.out.2.bias"] += float("inf")
    save_file(weights, tmp_path / "overflowing.safetensors")
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(configuration(tmp_path / "overflowing.safetensors", dataset_folder, tmp_path / "runs")))
    assert caught.value.kind == "nan"
    assert "step 1" in caught.value.message
    assert "learning rate" in caught.value.hint
