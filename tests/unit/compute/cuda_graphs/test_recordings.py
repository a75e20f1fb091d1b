"""Recordings of passes: gradients, memory, streams and errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.compute.cuda_graphs.recording import Repeating, Small
from tests.unit.compute.helpers import recipe_before_step_one
from tests.unit.training_helpers import configuration, make_dataset
from trainer.compute.cuda_graphs.cuda_recorder import CudaRecorder

pytestmark = pytest.mark.seconds


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


def test_each_size_is_recorded_after_so_many_eager_passes() -> None:
    small, recordings = Small(eager_passes=3), []
    for size in (1, 1, 2, 1, 2, 2, 1):
        assert small.gradient(torch.ones(size)) == size
        recordings.append(len(small.passes._recordings))
    assert recordings == [0, 0, 0, 1, 1, 2, 2]


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
    record = CudaRecorder()
    for _ in range(2):
        record(lambda: (torch.zeros(()), []))
    fails[0] = True
    with pytest.raises(RuntimeError, match="the capture's end fails"):
        record(lambda: (torch.zeros(()), []))
    assert now == [usual]
    assert len(used) == 3 and used[0] is used[1] is used[2] is not usual
