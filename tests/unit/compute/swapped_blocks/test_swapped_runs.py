"""Runs with swapped blocks: the same LoRA, the plan that states them, and where they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState

from random_checkpoints import anima
from tests.unit.compute.swapped_blocks.simulated_device import SimulatedStream
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.compute.swapped_blocks import copy_stream
from trainer.config import memory_presets
from trainer.config.run_config import RunConfig
from trainer.core import devices
from trainer.core.errors import UserError
from trainer.core.messages import Setting
from trainer.dataset import open_dataset
from trainer.families import family_of, open_checkpoint
from trainer.launch.prepared_run import prepare_run
from trainer.plan.memory_check import require_memory, savings
from trainer.plan.planning import make_plan
from trainer.runs.run_plan import RunPlan

BLOCKS = 5
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def deep_anima(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Anima of five blocks."""
    with patch.dict(anima.SIZES, deep=replace(anima.SIZES["tiny"], blocks=BLOCKS)):
        return anima.make_anima(tmp_path_factory.mktemp("deep"), "deep")


@pytest.fixture(scope="module")
def two_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two images."""
    return make_dataset(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedStream]:
    """The CPU is taken for a device with memory of its own."""
    AcceleratorState._reset_state(True)  # a process has one precision, and tests before these may have another
    stream = SimulatedStream()
    monkeypatch.setattr(devices, "has_own_memory", lambda device: True)
    monkeypatch.setattr(copy_stream, "copy_stream", lambda device, warn: stream)
    yield stream
    AcceleratorState._reset_state(True)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("deep_anima", {"training.precision": "bf16"}),
        ("deep_anima", {"training.precision": "bf16", "training.gradient_checkpointing": True, "training.base_precision": "int8"}),
        ("tiny_lumina2", {"training.precision": "bf16", "training.gradient_checkpointing": True}),
    ],
    ids=["bf16", "int8, checkpointed", "Lumina 2, checkpointed"],
)
def test_runs_with_and_without_swapping_write_the_same_lora(
    request: pytest.FixtureRequest, two_images: Path, tmp_path: Path, simulated: SimulatedStream, model: str, changes: dict[str, Any]
) -> None:
    """With validation images, whose passes have no gradients, between the steps."""
    common = {**changes, "training.epochs": 2, "training.gradient_accumulation": 1}
    common |= {"sample.prompts": ["a cat --w 64 --h 64 --s 2"], "sample.every_epochs": 1}
    runs = []
    for count in (0, 4):
        checkpoint = request.getfixturevalue(model)
        settings = configuration(checkpoint, two_images, tmp_path / str(count), {**common, "training.swap_blocks": count})
        runs.append(train_here(settings))
        assert bool(simulated.copied) == bool(count)
    plain, swapped = runs
    assert plain.status == swapped.status == 0 and len(swapped.steps) == 4
    assert [(step.loss, step.grad_norm) for step in plain.steps] == [(step.loss, step.grad_norm) for step in swapped.steps]
    assert plain.run.lora.read_bytes() == swapped.run.lora.read_bytes()
    images = [sorted(path.read_bytes() for path in run.run.samples.glob("*.png")) for run in runs]
    assert images[0] == images[1] and len(images[0]) == 3


def test_swapping_does_not_make_another_run(deep_anima: Path, two_images: Path, tmp_path: Path) -> None:
    folders = {
        prepare_run(configuration(deep_anima, two_images, tmp_path, {"training.swap_blocks": count})).folder.path for count in (0, 3)
    }
    assert len(folders) == 1


def plan_of(checkpoint: Path, dataset: Path, device: torch.device, changes: dict[str, Any]) -> RunPlan:
    """The plan of a run in bf16, made without touching a GPU."""
    opened = open_checkpoint(str(checkpoint))
    settings = configuration(checkpoint, dataset, Path("runs"), changes)
    with patch.object(devices, "total_memory_gb", lambda device: 6.0):
        return make_plan(settings, open_dataset(dataset), family_of(opened), opened, device, "bf16", try_kernels=False)


@pytest.mark.seconds
def test_plan_counts_two_swapped_blocks_at_a_time(two_images: Path, tmp_path: Path) -> None:
    full, block = anima.make_empty_anima(tmp_path), 69_206_528  # parameters of a block
    plans = {count: plan_of(full, two_images, CUDA, {"training.swap_blocks": count}) for count in (0, 2, 3, 28, 1000)}
    whole = plans[0].memory["base"]
    for count, away in ((2, 0), (3, 1), (28, 26), (1000, 26)):
        assert plans[count].memory["base"] == pytest.approx(whole - away * block * 2 / 1e9, abs=2e-3)
        assert plans[count].swappable_blocks == 28 and not plans[count].cuda_graphs
    assert plan_of(full, two_images, torch.device("cpu"), {"training.swap_blocks": 28}).swappable_blocks == 0


def test_refused_runs_and_failures_for_lack_of_memory_suggest_swapping() -> None:
    plan = RunPlan(1, {}, 1, 1, 1, 1, 1, "anima", "cuda", "bf16", 9.0, swappable_blocks=28)

    def memory_with(changes: Any) -> float:
        return 4.0 if Setting("training.swap_blocks", 28) in changes else 9.0

    with pytest.raises(UserError) as refused:
        require_memory(plan, 5.0, memory_with)
    assert "training.micro_batch_size = 1, training.swap_blocks = 28;" in str(refused.value.hint)
    assert savings(plan, memory_with) == [(Setting("training.swap_blocks", 28), 4.0)]
    assert savings(replace(plan, swappable_blocks=0), memory_with) == []


@pytest.mark.parametrize("other", [{"network.dora": True}, {"training.compile": True}, {"training.cuda_graphs": "on"}])
def test_swapping_is_refused_with_what_needs_all_blocks(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"training\.swap_blocks cannot be used with network\.dora = true or .* set it to 0"):
        configuration(Path("a"), Path("b"), Path("c"), {**other, "training.swap_blocks": 3})
    settings: RunConfig = configuration(Path("a"), Path("b"), Path("c"), {**other, "training.memory": "6gb"})
    assert memory_presets.with_preset(settings, "6gb", "anima").training.swap_blocks == 0


def test_unets_are_refused(shallow_checkpoint: Path, two_images: Path) -> None:
    with pytest.raises(UserError, match=r"training\.swap_blocks is 3, but the blocks of Stable Diffusion 1\.x cannot be swapped") as error:
        plan_of(shallow_checkpoint, two_images, CUDA, {"training.swap_blocks": 3})
    assert "training.swap_blocks = 0" in str(error.value.hint)
