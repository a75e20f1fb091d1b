"""Runs that two processes share (gloo, on the CPU): losses and LoRA as in one process, one writer, and what a lost process leads to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.tools.children.processes import of_run
from tests.tools.parameters import mark_long
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer import cli
from trainer.config.run_config import RunConfig
from trainer.core.errors import Cancelled, UserError
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.runs import events
from trainer.runs.event_log import read_events

pytestmark = pytest.mark.slow
SETTINGS: dict[str, object] = {
    "training.epochs": 2,
    "training.batch_size": 3,
    "training.gradient_accumulation": 1,
    "training.device": "cpu",
    "training.precision": "fp32",
    "training.checkpoint_every": 2,
    "optimizer.lr": 1e-3,
    "network.text_encoder": True,  # models of both kinds exchange their gradients
    "sample.every_epochs": 0,
    "output.tensorboard": False,
}


@dataclass(frozen=True)
class Run:
    lora: Path
    told: list[events.Event]

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.told if isinstance(event, events.Step)]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.float() for name, tensor in load_file(self.lora).items()}


def settings(checkpoint: Path, dataset: Path, folder: Path, processes: int, **more: object) -> RunConfig:
    return configuration(checkpoint, dataset, folder / "runs", {**SETTINGS, "training.processes": processes, **more})


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 128 pixels: of smaller ones the tiny UNet makes so few numbers that rounding is enlarged."""
    return make_dataset(tmp_path_factory.mktemp("dataset"), resolution=128)


@pytest.fixture(scope="module")
def one(shallow_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    trained = train_here(settings(shallow_checkpoint, dataset_folder, tmp_path_factory.mktemp("one"), 1))
    return Run(trained.run.lora, trained.told)


def test_two_processes_train_like_one(one: Run, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    config = settings(shallow_checkpoint, dataset_folder, tmp_path, 2)
    received: list[events.Event] = []
    together: set[int] = set()

    def on_event(event: events.Event) -> None:
        received.append(event)
        if isinstance(event, events.Step) and not together:
            together.update(children_of(prepare_run(config).folder.path))

    two = Run(launcher.train(prepare_run(config), on_event=on_event).lora, received)
    assert len(together) == 2, "the work was not shared"
    # the images of a step are the same; their gradients are only added up in another order
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert distance(two, one) < 2e-3
    # one writer: every step and every state is logged once
    log = read_events(prepare_run(config).folder.events)
    assert [event.step for event in log if isinstance(event, events.Step)] == list(range(1, len(one.losses) + 1))
    assert sum(isinstance(event, (events.Plan, events.Done)) for event in log) == 2


def test_a_run_can_resume_with_another_number_of_processes(
    one: Run, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    first = settings(shallow_checkpoint, dataset_folder, tmp_path, 2)
    seen: list[events.Event] = []
    with pytest.raises(Cancelled):
        launcher.train(prepare_run(first), on_event=seen.append, should_stop=lambda: any(isinstance(event, events.Step) for event in seen))
    stopped = read_events(prepare_run(first).folder.events)[-1]
    assert isinstance(stopped, events.Stopped)
    assert stopped.step >= 1
    second = settings(shallow_checkpoint, dataset_folder, tmp_path, 1)
    assert prepare_run(second).folder.path == prepare_run(first).folder.path
    resumed = Run(train_here(second).run.lora, [])
    assert distance(resumed, one) < 2e-3


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("victim", mark_long([0, 1], 0))
def test_a_killed_process_ends_the_run_and_is_named(victim: int, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    config = settings(shallow_checkpoint, dataset_folder, tmp_path, 2, **{"training.epochs": 500})
    run = prepare_run(config).folder.path
    killed = False

    def kill(event: events.Event) -> None:
        nonlocal killed
        if isinstance(event, events.Step) and not killed:
            killed = True
            os.kill(children_of(run)[victim], signal.SIGKILL)

    with pytest.raises(UserError, match=rf"process {victim} of 2 ended with SIGKILL") as caught:
        launcher.train(prepare_run(config), on_event=kill)
    assert killed
    assert "memory" in caught.value.hint
    assert children_of(run) == {}


@pytest.mark.long
def test_torchrun_can_start_the_entry_script(
    one: Run, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(shallow_checkpoint, dataset_folder, tmp_path, 1)
    file = tmp_path / "run.json"
    file.write_text(config.to_json(), encoding="utf-8")
    assert cli.main(["train", str(file), "--prepare"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    entry = Path(launcher.__file__).parents[1] / "entry.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    subprocess.run([*torchrun, str(entry), "--run", str(folder)], check=True, capture_output=True, timeout=300)
    again = launcher.train(prepare_run(config))
    assert again.reused
    assert distance(Run(again.lora, []), one) < 2e-3


def test_a_given_accelerate_configuration_that_is_missing_is_an_error(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    config = settings(shallow_checkpoint, dataset_folder, tmp_path, 1)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        launcher.train(prepare_run(config), accelerate_config=tmp_path / "none.yaml")


@pytest.mark.long
def test_a_given_accelerate_configuration_is_used(one: Run, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    config = settings(shallow_checkpoint, dataset_folder, tmp_path, 1)
    ours = prepare_run(settings(shallow_checkpoint, dataset_folder, tmp_path, 2))
    write_run_folder(ours)
    given = tmp_path / "two.yaml"
    shutil.copyfile(ours.folder.accelerate_config, given)
    ranks: set[int] = set()
    result = launcher.train(
        prepare_run(config), accelerate_config=given, on_event=lambda event: ranks.update(children_of(ours.folder.path))
    )
    given_run = Run(result.lora, [])
    assert ranks == {0, 1}
    assert distance(given_run, one) < 2e-3


def test_more_processes_than_images_in_a_step_are_refused(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as accelerate and torchrun set it in the first of two processes
    refused = train_here(settings(shallow_checkpoint, dataset_folder, tmp_path, 2, **{"training.batch_size": 1}))
    assert refused.status == 1
    assert "2 processes were started, but a step has only 1 image" in getattr(refused.told[-1], "message", "")


def distance(run: Run, other: Run) -> float:
    """Length of the difference of two LoRAs over that of the second. Single weights differ more: Adam divides by tiny numbers."""
    ours, theirs = run.weights, {name: tensor for name, tensor in other.weights.items() if "lora_up" in name}
    difference = torch.stack([(ours[name] - tensor).norm() for name, tensor in theirs.items()])
    return float(difference.norm() / torch.stack([tensor.norm() for tensor in theirs.values()]).norm())


def children_of(run: Path) -> dict[int, int]:
    """Process ids of the run's training processes by rank."""
    found = {}
    for process in of_run(run, launcher=False):
        with suppress(psutil.NoSuchProcess):  # it ended since
            found[int(process.environ().get("RANK", "0"))] = process.pid
    return found
