"""Recorded passes give the gradients of passes as written, and give up where they cannot.

CUDA itself needs a GPU; everywhere else a recorder stands in for it that computes again into the same tensors, from the inputs that it
was made with: what a recording sees and leaves is then the same.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.unit.compute.helpers import recipe_before_step_one, same_training
from tests.unit.compute.recording import Repeating, Small
from tests.unit.training_helpers import Trained, configuration, lose_a_gradient, make_dataset, make_pictures, train_here
from trainer.compute import compiled_blocks, cuda_graphs, lora_layers
from trainer.compute.acceleration import Context
from trainer.compute.cuda_graphs import LossAndGradients
from trainer.config.prepare_sections import BucketSettings
from trainer.config.run_config import RunConfig
from trainer.dataset import PrepareSettings, open_dataset, prepare_dataset
from trainer.families import family_of, open_checkpoint
from trainer.plan import planning
from trainer.runs import events

pytestmark = pytest.mark.seconds

CHANGES: dict[str, Any] = {"training.batch_size": 2, "training.gradient_accumulation": 2, "training.epochs": 3, "optimizer.lr": 1e-2}
AsWritten = Callable[..., Trained]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Repeating]:
    """Every run records, with a stand-in."""

    class Own(Repeating):
        pass

    monkeypatch.setattr(planning, "_uses_cuda_graphs", lambda *_: True)
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", Own)
    return Own


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures: batches of two, two and one."""
    return make_dataset(tmp_path_factory.mktemp("five"), 5)


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
        {"training.gradient_checkpointing": True},
        pytest.param({"network.targets": "all-linear+conv"}, marks=pytest.mark.long),
        {"network.targets": "all-linear+conv", "network.dora": True},
        pytest.param({"optimizer.name": "schedule-free", "training.ema_decay": 0.0}, marks=pytest.mark.long),
    ],
    ids=["plain", "in parts", "weighted", "checkpointed", "convolutions", "DoRA", "schedule-free"],
)
def test_recorded_passes_train_like_eager_ones(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, tmp_path: Path, recorder: type[Repeating], more: dict[str, Any]
) -> None:
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, {**CHANGES, **more}))
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
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorder, "__call__", refuse)
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "CUDA graphs failed" in warning and "when stream is capturing)" in warning


def test_recording_with_wrong_gradients_is_not_used(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
        replay, passed = Repeating.__call__(self, compute)

        def wrong() -> None:
            replay()
            for gradient in passed[1][: len(passed[1]) // 2]:
                assert gradient is not None
                gradient.zero_()

        return wrong, passed

    monkeypatch.setattr(recorder, "__call__", lose)
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "its gradients were not those of the eager pass" in warning


def test_recording_that_lacks_one_gradient_is_not_used(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest that counts, of dozens: in the norm of all of them it is lost."""

    def lose(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
        replay, passed = Repeating.__call__(self, compute)

        def wrong() -> None:
            replay()
            there = [gradient for gradient in passed[1] if gradient is not None and bool(gradient.any())]
            min(there, key=lambda gradient: float(gradient.norm())).zero_()

        return wrong, passed

    monkeypatch.setattr(recorder, "__call__", lose)
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "its gradients were not those of the eager pass" in warning


def test_recording_without_gradients_through_lora_is_not_used(
    shallow_checkpoint: Path, five: Path, as_written: AsWritten, tmp_path: Path, recorder: type[Repeating], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start LoRA's up is zero, and nothing should."""

    add = lora_layers._add_product

    def add_in_forward(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *scale: float) -> torch.Tensor:
        return add(total, left, right, *scale) if scale else total

    def lose(self: Repeating, compute: Callable[[], LossAndGradients]) -> Any:
        def without() -> LossAndGradients:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(lora_layers, "_add_product", add_in_forward)
                return compute()

        return Repeating.__call__(self, without)

    monkeypatch.setattr(recorder, "__call__", lose)
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, CHANGES))
    same_training(as_written(), recording)
    (warning,) = warnings(recording)
    assert "its gradients were not those of the eager pass" in warning


def test_failing_compiler_is_not_recorded(
    shallow_checkpoint: Path,
    five: Path,
    as_written: AsWritten,
    tmp_path: Path,
    recorder: type[Repeating],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.compute.compiled_blocks.compile_blocks", lose_a_gradient)
    recording = train_here(configuration(shallow_checkpoint, five, tmp_path, {**CHANGES, "training.compile": True}))
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


def test_replays_do_not_overwrite_accumulated_gradients(shallow_checkpoint: Path, tmp_path: Path, recorder: type[Repeating]) -> None:
    settings = configuration(shallow_checkpoint, make_dataset(tmp_path, 2), tmp_path, {"training.gradient_accumulation": 1})
    recipe, batch = recipe_before_step_one(settings)
    losses, sums = [], []
    for _ in range(3):
        losses.append(float(recipe.forward_backward(batch.micro_batches[0])))
        sums.append([parameter.grad.clone() for parameter in recipe.model.parameters if parameter.grad is not None])
    assert recorder.recorded == 1 and losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)
    for times, total in enumerate(sums, start=1):
        for gradient, first in zip(total, sums[0], strict=True):
            torch.testing.assert_close(gradient, times * first, rtol=1e-4, atol=1e-7)


def test_recordings_are_dropped_when_another_size_lacks_memory() -> None:
    small = Small()
    assert small.gradient(torch.ones(2)) == 2
    small.short = True
    assert small.gradient(torch.ones(3)) == 3
    assert not small.passes.active and not small.passes._recordings
    assert small.warnings == ["memory ran out beside the recordings of other image sizes"]
    assert small.gradient(torch.ones(2)) == 2


def test_overflowing_pass_is_not_recorded() -> None:
    small = Small()
    small.gradient(torch.tensor([float("inf")]))
    assert not small.passes._recordings and small.passes.active
    small.gradient(torch.ones(1))
    assert len(small.passes._recordings) == 1 and not small.warnings


def test_failing_recording_reports_its_first_error() -> None:
    def record(compute: Any) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch does

    small = Small(record)
    assert small.gradient(torch.ones(1)) == 1
    assert small.warnings == ["operation not permitted when stream is capturing"]


@pytest.mark.parametrize("fails", ["in the pass", "at the end of the recording", "by other gradients"])
def test_failing_recording_frees_its_memory(fails: str) -> None:
    """Acted without a garbage collector, as a training process runs: what a trace refers to would stay."""
    held = list[weakref.ref[torch.Tensor]]()
    left: list[list[bool]] = []

    def record(compute: Any) -> Any:
        activations = torch.ones(1000)
        held.append(weakref.ref(activations))
        kept = compute()
        held.extend(weakref.ref(gradient) for gradient in kept[1])
        try:
            if fails != "by other gradients":
                raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            if fails == "at the end of the recording":
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch does
            raise
        return lambda: kept[1][0].mul_(3 * activations[0]), kept

    small = Small(record)
    forget = small.passes.forget

    def forgetting() -> None:
        forget()
        left.append([reference() is not None for reference in held])

    small.passes.forget = forgetting  # type: ignore[method-assign]
    gc.disable()
    try:
        assert small.gradient(torch.ones(2)) == 2
    finally:
        gc.enable()
    assert left == [[False, False]]
    assert len(small.warnings) == 1 and not small.passes.active
    assert small.gradient(torch.ones(2)) == 2


class Stream:
    """Stands in for ``torch.cuda.Stream``."""

    def wait_stream(self, other: Any) -> None:
        """Nothing runs on it."""


def test_recordings_share_a_stream_and_restore_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch hands freed memory on within a stream only. Acted: the calls are torch's for a GPU."""
    usual, used, fails = Stream(), list[Stream](), [False]
    now = [usual]

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, now[0] = now[0], chosen
        yield
        now[0] = before

    @contextmanager
    def graph(_: Any, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        used.append(stream)
        now[0] = stream
        yield
        if fails[0]:  # then torch's own block does not come to its end
            raise RuntimeError("the capture's end fails")
        now[0] = usual

    acted = {
        "graph_pool_handle": lambda: (0, 1), "Stream": Stream, "empty_cache": lambda: None, "synchronize": lambda: None,
        "current_stream": lambda: now[0], "stream": stream, "graph": graph, "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "set_stream": lambda chosen: now.__setitem__(0, chosen), "current_device": lambda: 0,
    }  # fmt: skip
    for name, value in acted.items():
        monkeypatch.setattr(torch.cuda, name, value)
    record = cuda_graphs.CudaRecorder()
    for _ in range(2):
        record(lambda: (torch.zeros(()), []))
    fails[0] = True
    with pytest.raises(RuntimeError, match="the capture's end fails"):
        record(lambda: (torch.zeros(()), []))
    assert now == [usual]
    assert len(used) == 3 and used[0] is used[1] is used[2] is not usual


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"training.cuda_graphs": "off"}, False),
        ({"network.dropout": 0.1}, False),
        ({"network.text_encoder": True, "training.cuda_graphs": "on"}, False),
        ({"training.memory": "6gb"}, False),  # 5 GB of 6
        ({"training.memory": "6gb", "training.cuda_graphs": "on"}, True),
    ],
)
def test_plan_uses_cuda_graphs_if_memory_suffices(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: bool) -> None:
    monkeypatch.setattr(planning, "usable_memory_gb", lambda device: 80.0)
    settings = configuration(Path("a.safetensors"), Path("dataset"), Path("runs"), changes)
    gpu, cpu = (Context(settings, torch.device(kind), torch.bfloat16) for kind in ("cuda", "cpu"))
    assert planning._uses_cuda_graphs(gpu, 5.0) is expected
    assert planning._uses_cuda_graphs(cpu, 5.0) is False
    assert planning._uses_cuda_graphs(gpu, 50.0) is (changes.get("training.cuda_graphs") == "on" and expected)


@pytest.mark.parametrize("dora", [False, True])
def test_plan_counts_gradients_of_recordings(shallow_checkpoint: Path, five: Path, monkeypatch: pytest.MonkeyPatch, dora: bool) -> None:
    monkeypatch.setattr(planning, "usable_memory_gb", lambda device: 80.0)
    checkpoint, made = open_checkpoint(str(shallow_checkpoint)), {}
    for way in ("off", "on"):
        chosen = {"training.cuda_graphs": way, "training.device": "cuda", "network.dora": dora, "network.rank": 256}
        settings = configuration(shallow_checkpoint, five, Path("runs"), chosen)
        rest = (open_dataset(five), family_of(checkpoint), checkpoint, torch.device("cuda"), "bf16")
        made[way] = planning.make_plan(settings, *rest, try_kernels=False)
    assert made["on"].cuda_graphs and not made["off"].cuda_graphs
    more = made["on"].memory["lora"] - made["off"].memory["lora"]
    assert more == pytest.approx(2 * made["on"].trainable_parameters * (4 if dora else 2) / 1e9, abs=1.1e-3)
    assert more > 0.003


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_saves_rng_state_only_with_dropout(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    copied: list[int] = []
    get = torch.get_rng_state

    def counted() -> torch.Tensor:
        copied.append(1)
        return get()

    settings = configuration(
        shallow_checkpoint, make_dataset(tmp_path, 1), tmp_path, {"training.gradient_checkpointing": True, "network.dropout": dropout}
    )
    recipe, batch = recipe_before_step_one(settings)
    monkeypatch.setattr(torch, "get_rng_state", counted)
    recipe.compute_gradients(batch)
    assert bool(copied) is bool(dropout)


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
