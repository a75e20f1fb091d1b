"""Runs with recorded passes equal eager ones.

CUDA itself needs a GPU. Elsewhere a recorder stands in for it that computes into the same tensors again, from the inputs with which it was
made: a recording then reads and leaves the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.unit.compute.cuda_graphs.recording import Repeating
from tests.unit.compute.helpers import same_training
from tests.unit.training_helpers import Trained, configuration, lose_a_gradient, make_dataset, make_pictures, train_here
from trainer.compute import compiled_blocks, lora_layers
from trainer.compute.cuda_graphs.cuda_recorder import LossAndGradients
from trainer.config.prepare_sections import BucketSettings
from trainer.config.run_config import RunConfig
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.plan import planning
from trainer.runs import events

pytestmark = pytest.mark.seconds
CHANGES: dict[str, Any] = {"training.batch_size": 2, "training.gradient_accumulation": 2, "training.epochs": 3, "optimizer.lr": 1e-2}
AsWritten = Callable[..., Trained]


@pytest.fixture(scope="module")
def as_written(shallow_checkpoint: Path, five: Path, tmp_path_factory: pytest.TempPathFactory) -> AsWritten:
    """``CHANGES`` and more, trained without recordings; once for the same settings."""
    runs, known = tmp_path_factory.mktemp("written"), dict[str, Trained]()

    def trained(**more: Any) -> Trained:
        if repr(more) not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(planning, "_uses_cuda_graphs", lambda *_: False)
                known[repr(more)] = train_here(configuration(shallow_checkpoint, five, runs, {**CHANGES, **more}))
        return known[repr(more)]

    return trained


def both_ways(settings: Callable[[str], RunConfig], monkeypatch: pytest.MonkeyPatch) -> tuple[Trained, Trained]:
    recording = train_here(settings("recording"))
    monkeypatch.setattr(planning, "_uses_cuda_graphs", lambda *_: False)
    return train_here(settings("plain")), recording


def warnings(trained: Trained) -> list[str]:
    return [event.message for event in trained.told if isinstance(event, events.Warning_)]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"training.micro_batch_size": 1},
        {"objective.min_snr_gamma": 5.0, "objective.loss": "huber", "objective.input_perturbation": 0.1},
        pytest.param({"training.gradient_checkpointing": True}, marks=pytest.mark.long),
        pytest.param({"network.targets": "all-linear+conv"}, marks=pytest.mark.long),
        pytest.param({"network.targets": "all-linear+conv", "network.dora": True}, marks=pytest.mark.long),
        pytest.param({"optimizer.name": "schedule-free", "training.ema_decay": 0.0}, marks=pytest.mark.long),
    ],
    ids=["plain", "in parts", "weighted", "checkpointed", "convolutions", "DoRA", "schedule-free"],
)
def test_recorded_passes_train_like_eager_ones(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, runs: Path, recorder: type[Repeating], more: dict[str, Any]
) -> None:
    recording = train_here(configuration(shallow_checkpoint, five, runs, {**CHANGES, **more}))
    same_training(as_written(**more), recording)
    assert recorder.recorded == (1 if "training.micro_batch_size" in more else 2)
    assert recorder.replayed > 2 * recorder.recorded
    assert warnings(recording) == []


def test_each_image_size_has_a_recording(
    shallow_checkpoint: Path, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_pictures(tmp_path / "pictures", 3)
    for path in make_pictures(tmp_path / "wide", 3, (128, 64), seed=1).iterdir():
        path.rename(source / f"wide-{path.name}")
    chosen = PrepareSettings(trigger="myStyle", class_description="anime_face", resolution=64, buckets=BucketSettings(step=8))
    folder = prepare_dataset(source, tmp_path / "datasets", chosen).dataset.path
    plain, recording = both_ways(
        lambda name: configuration(shallow_checkpoint, folder, tmp_path / name, {**CHANGES, "training.batch_size": 1}), monkeypatch
    )
    same_training(plain, recording)
    assert warnings(recording) == []
    assert recorder.recorded == 2
    planned = next(event for event in recording.told if isinstance(event, events.Plan))
    assert len(recorder.places) == 2 * planned.modules, "a set of gradients for each recording: SDXL's at rank 64 are 344 MB"


def test_failing_recorder_turns_off_with_a_warning(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, runs: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorder, "__call__", refuse)
    recording = train_here(configuration(shallow_checkpoint, five, runs, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "CUDA graphs failed" in warning and "when stream is capturing)" in warning


def lose_half(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
    replay, passed = Repeating.__call__(self, compute)

    def wrong() -> None:
        replay()
        for gradient in passed[1][: len(passed[1]) // 2]:
            assert gradient is not None
            gradient.zero_()

    return wrong, passed


def lose_the_smallest(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
    """Of dozens: in the norm of all of them it is lost."""
    replay, passed = Repeating.__call__(self, compute)

    def wrong() -> None:
        replay()
        there = [gradient for gradient in passed[1] if gradient is not None and bool(gradient.any())]
        min(there, key=lambda gradient: float(gradient.norm())).zero_()

    return wrong, passed


def lose_those_through_lora(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
    """At the start LoRA's up is zero, and nothing should pass."""
    add = lora_layers._add_product

    def add_in_forward(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *scale: float) -> torch.Tensor:
        return add(total, left, right, *scale) if scale else total

    def without() -> LossAndGradients:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lora_layers, "_add_product", add_in_forward)
            return compute()

    return Repeating.__call__(self, without)


@pytest.mark.parametrize("lose", [lose_half, lose_the_smallest, lose_those_through_lora])
def test_recording_with_wrong_gradients_is_not_used(
    lose: Any,
    shallow_checkpoint: Path,
    five: Path,
    as_written: AsWritten,
    runs: Path,
    recorder: type[Repeating],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "__call__", lose)
    recording = train_here(configuration(shallow_checkpoint, five, runs, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "its gradients were not those of the eager pass" in warning


def test_failing_compiler_is_not_recorded(
    shallow_checkpoint: Path,
    five: Path,
    as_written: AsWritten,
    runs: Path,
    recorder: type[Repeating],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.compute.compiled_blocks.compile_blocks", lose_a_gradient)
    recording = train_here(configuration(shallow_checkpoint, five, runs, {**CHANGES, "training.compile": True}))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "torch.compile failed" in warning


@pytest.mark.long
def test_compiled_blocks_are_recorded(
    shallow_checkpoint: Path, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_blocks, "_BACKEND", "eager")
    folder = make_dataset(tmp_path, 4)
    settings = {**CHANGES, "training.compile": True, "training.max_steps": 3}
    plain, recording = both_ways(lambda name: configuration(shallow_checkpoint, folder, tmp_path / name, settings), monkeypatch)
    same_training(plain, recording)
    assert recorder.recorded == 1 and warnings(recording) == []
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(
    "more",
    [{}, {"training.gradient_checkpointing": True}, {"training.precision": "fp16"}, {"network.targets": "all-linear+conv"}],
    ids=["plain", "checkpointed", "fp16", "convolutions"],
)
def test_cuda_graphs_train_like_eager_passes(shallow_checkpoint: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = make_dataset(tmp_path, 5)
    common = {**CHANGES, "training.device": "cuda", "training.precision": "bf16", "optimizer.lr": 1e-3, **more}
    AcceleratorState._reset_state(True)  # a process has one precision, and the case before may have had another
    runs = [
        train_here(configuration(shallow_checkpoint, folder, tmp_path / way, {**common, "training.cuda_graphs": way}))
        for way in ("off", "on")
    ]
    assert warnings(runs[1]) == []
    same_training(*runs, loss=2e-2, norm=1e-1)
