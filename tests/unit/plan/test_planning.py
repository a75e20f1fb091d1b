"""The plan: its counts match the run, and its memory matches a real training step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.parameters import mark_long
from tests.unit.plan.helpers import bytes_kept_for_backward
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.core import devices
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.families import family_of, open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.plan import memory_estimate
from trainer.plan.memory_check import require_memory
from trainer.plan.memory_estimate import memory_needed
from trainer.plan.meta_models import MetaModels, memory_of
from trainer.plan.planning import make_plan
from trainer.runs import events


@pytest.mark.seconds
@pytest.mark.parametrize(("batch", "pixels", "targets"), [(1, 256, "all-linear"), (2, 128, "all-linear"), (1, 256, "attention")])
def test_estimated_activations_match_a_real_forward_pass(
    tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path, batch: int, pixels: int, targets: str
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    config = configuration(tiny_checkpoint, dataset_folder, tmp_path, {"training.batch_size": batch, "network.targets": targets})
    planned = FAMILY.empty_denoiser(checkpoint)
    modules = FAMILY.denoiser_targets(planned, targets)
    with torch.device("meta"):
        adapter.inject(planned, modules, rank=4, alpha=4, seed=0)
    activations = memory_needed(planned, FAMILY, config, (pixels, pixels), torch.float32)["activations"] * 1e9

    real: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    real.to(memory_format=torch.channels_last)
    adapter.inject(real, modules, rank=4, alpha=4, seed=0)
    # the meta device knows no memory formats, so copies between them are not counted
    assert activations == pytest.approx(bytes_kept_for_backward(real.train(), pixels // 8, batch), rel=0.035)


@pytest.mark.parametrize("family", mark_long(["sd1", "sdxl"], "sdxl"))
@pytest.mark.parametrize("more", [{}, {"training.gradient_checkpointing": True, "network.dora": True}], ids=["plain", "checkpointed DoRA"])
@pytest.mark.seconds
def test_remembered_shapes_give_the_same_estimate(
    shallow_checkpoint: Path,
    shallow_sdxl: Path,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    more: dict[str, Any],
) -> None:
    checkpoint = open_checkpoint(str({"sd1": shallow_checkpoint, "sdxl": shallow_sdxl}[family]))
    changes = {"training.batch_size": 3, "network.targets": "all-linear+conv", **more}
    config = configuration(checkpoint.path, dataset_folder, tmp_path, changes)
    counted = []
    for mode in (memory_estimate._remembered_shapes, nullcontext):
        monkeypatch.setattr(memory_estimate, "_remembered_shapes", mode)
        counted.append(memory_of(config, family_of(checkpoint), checkpoint, (192, 128), torch.bfloat16))
    assert counted[0] == counted[1]


@pytest.mark.parametrize("more", mark_long([{}, {"network.text_encoder": True}], {}), ids=["unet", "with text encoder"])
@pytest.mark.seconds
def test_plans_that_share_models_equal_separate_plans(shallow_checkpoint: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    """In an order in which each plan gets models that the plan before it changed."""
    folder, checkpoint, models = make_dataset(tmp_path, 4), open_checkpoint(str(shallow_checkpoint)), MetaModels()
    settings: list[dict[str, Any]] = [
        {"training.gradient_checkpointing": True},
        {},
        {"training.micro_batch_size": 1},
        {"training.base_precision": "int8"},
        {"training.gradient_checkpointing": True, "training.base_precision": "int8"},
        {"network.rank": 2},
        {"training.precision": "bf16"},
        {},
    ]
    for changes in settings:
        config = configuration(shallow_checkpoint, folder, tmp_path, {"training.batch_size": 4, **more, **changes})
        given = (config, open_dataset(folder), FAMILY, checkpoint, torch.device("cpu"), changes.get("training.precision", "fp32"))
        plans = [make_plan(*given, models=shared) for shared in (models, None)]
        assert plans[0] == plans[1], changes
    assert len(models._models) == 4, "too few or too many models were shared"


@pytest.mark.seconds
def test_a_run_does_what_its_plan_says(shallow_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 5, repeats=2)
    changes = {"training.batch_size": 4, "training.gradient_accumulation": 2, "training.epochs": 2}
    config = configuration(shallow_checkpoint, folder, tmp_path / "runs", changes)
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    plan = make_plan(config, open_dataset(folder), FAMILY, checkpoint, torch.device("cpu"), "fp32")
    # ten images per epoch: batches of 4, 4 and 2; steps of two batches and of one
    assert (plan.images, plan.buckets, plan.steps_per_epoch, plan.steps, plan.epochs) == (5, {"64x64": 10}, 2, 4, 2)
    assert [step.step for step in train_here(config).steps] == [1, 2, 3, 4]


def test_max_steps_shortens_the_last_epoch(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    def plan(steps: int) -> tuple[int, int]:
        changes = {"training.max_steps": steps, "training.epochs": 3, "training.gradient_accumulation": 2}
        made = make_plan(
            configuration(shallow_checkpoint, dataset_folder, tmp_path, changes),
            open_dataset(dataset_folder),
            FAMILY,
            open_checkpoint(str(shallow_checkpoint)),
            torch.device("cpu"),
            "fp32",
        )
        return made.steps, made.epochs

    assert [plan(steps) for steps in (0, 1, 4, 100)] == [(9, 3), (1, 1), (4, 2), (9, 3)]


@pytest.mark.seconds
def test_checkpointing_needs_less_memory(shallow_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    folder = make_dataset(tmp_path, 1, resolution=512)

    def memory(**changes: object) -> float:
        config = configuration(shallow_checkpoint, folder, tmp_path, changes)
        return make_plan(config, open_dataset(folder), FAMILY, checkpoint, torch.device("cpu"), "fp32").memory_gb

    assert memory(**{"training.gradient_checkpointing": True}) < memory() < memory(**{"training.batch_size": 4})


@pytest.mark.parametrize(
    ("enough", "words"),
    [
        ({"training.precision": "bf16"}, 'with training.precision = "bf16";'),
        ({"training.precision": "bf16", "training.gradient_checkpointing": True}, "training.gradient_checkpointing = true;"),
        (
            {"training.precision": "bf16", "training.gradient_checkpointing": True, "training.micro_batch_size": 1},
            "training.micro_batch_size = 1;",
        ),
        (None, "No setting makes it fit"),
    ],
)
@pytest.mark.seconds
def test_a_run_that_cannot_fit_is_refused_with_settings_that_would(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: dict[str, Any] | None, words: str
) -> None:
    folder = make_dataset(tmp_path, 4, resolution=512)
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    settings = configuration(shallow_checkpoint, folder, tmp_path / "runs", {"training.batch_size": 4})
    total = 0.1
    if enough is not None:
        fitting = configuration(shallow_checkpoint, folder, tmp_path / "runs", {"training.batch_size": 4, **enough})
        precision = fitting.training.precision
        total = make_plan(fitting, open_dataset(folder), FAMILY, checkpoint, torch.device("cpu"), precision).memory_gb / 1.1 + 1e-3
    monkeypatch.setattr("trainer.core.devices.total_memory_gb", lambda device: total)
    trained = train_here(settings)
    error = trained.told[-1]
    assert isinstance(error, events.Error)
    assert (trained.status, error.kind) == (1, "memory")
    assert words in error.hint
    assert f"{total:.1f} GB" in error.message
    assert not (trained.run.path.parent / "_cache" / "latents").exists()  # before anything was encoded


def test_an_estimate_slightly_above_the_memory_is_accepted(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.core.devices.total_memory_gb", lambda device: 0.8)
    settings = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.max_steps": 1})
    plan = make_plan(settings, open_dataset(dataset_folder), FAMILY, open_checkpoint(str(shallow_checkpoint)), torch.device("cpu"), "fp32")
    assert 0.8 < plan.memory_gb < 0.88
    assert train_here(settings).status == 0


def test_memory_used_by_other_programs_counts_and_a_tight_fit_warns(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is simulated: the run computes on the CPU."""
    settings = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.max_steps": 1})
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("trainer.core.devices.total_memory_gb", lambda device: 12.0)
    assert (devices.usable_memory_gb(cpu), devices.usable_memory_gb(gpu)) == (12.0, 10.5)
    plan = make_plan(settings, open_dataset(dataset_folder), FAMILY, open_checkpoint(str(shallow_checkpoint)), cpu, "fp32")
    on_gpu = replace(plan, device="cuda", memory_gb=11.5)
    require_memory(on_gpu, 11.0, lambda changes: 11.5)
    with pytest.raises(UserError, match=r"the GPU has 11\.0 GB for it"):
        require_memory(replace(on_gpu, memory_gb=12.2), 11.0, lambda changes: 12.2)


@pytest.mark.parametrize(("rank", "used"), [("1", [1]), ("", []), ("3", []), (None, [])])
def test_each_process_uses_its_own_gpu(monkeypatch: pytest.MonkeyPatch, rank: str | None, used: list[int]) -> None:
    taken: list[int] = []
    monkeypatch.setattr(devices, "gpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    devices.use_own_gpu()
    assert taken == used
