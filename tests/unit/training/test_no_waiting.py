"""What a step copies to a GPU and reads back from it waits for nothing. The calls are torch's for a GPU, which is acted."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.core import gpu_sync
from trainer.core.errors import UserError
from trainer.families import Framing
from trainer.families.sdxl import FAMILY as SDXL
from trainer.families.sdxl import DualClipText
from trainer.families.stable_diffusion.clip_text import ClipText
from trainer.runs import events
from trainer.training.monitoring import step_log

GPU = torch.device("cuda")


class Event:
    """Stands in for ``torch.cuda.Event``; ``reached`` counts how many of all are done."""

    made: list[Event]
    reached: int
    waited: int

    def __init__(self) -> None:
        type(self).made.append(self)

    def record(self) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        return self.made.index(self) < self.reached

    def synchronize(self) -> None:
        type(self).waited += not self.query()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Event]:
    """A GPU whose progress the test decides."""
    acted = type("Acted", (Event,), {"made": [], "reached": 0, "waited": 0})
    monkeypatch.setattr(torch.cuda, "Event", acted)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    return acted


class Copies(TorchDispatchMode):
    """Whether each copy to another device waits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and (kwargs.get("device") or args[0].device) != args[0].device:
            self.waits.append(not kwargs.get("non_blocking", False))
        return func(*args, **kwargs)


def test_the_step_log_reports_what_has_arrived_and_waits_for_nothing(gpu: type[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[events.Step] = []
    plan: Any = SimpleNamespace(steps=5, steps_per_epoch=5, buckets={"64x64": 5})
    outputs: Any = SimpleNamespace(emit=logged.append, trackers=SimpleNamespace(scalars=lambda *_: None))
    monkeypatch.setattr(step_log, "_REPORT_SECONDS", -1.0)
    log = step_log.StepLog(plan, GPU, outputs, threading.Lock(), UserError, 0.0)
    for step in range(1, 6):
        norms = torch.tensor([1.0, 3.0]) if step == 2 else None
        log.record(step, 0, 1, step_log.StepMetrics(torch.tensor(step / 4), torch.tensor(2.0), 1e-4), norms)
        gpu.reached = step - 2  # the newest two are not done yet
        log.report()
        assert [event.step for event in logged] == list(range(1, step - 1))
    assert gpu.waited == 0
    log.flush()
    assert [(event.step, event.loss, event.grad_norm) for event in logged] == [(step, step / 4, 2.0) for step in range(1, 6)]
    assert [(event.weight_norm, event.weight_norm_max) for event in logged[:3]] == [(None, None), (2.0, 3.0), (None, None)]
    assert gpu.waited == 2


def test_reading_numbers_does_not_wait(gpu: type[Event]) -> None:
    asked: list[tuple[Any, ...]] = []

    class OnGpu:
        def detach(self) -> OnGpu:
            return self

        def to(self, device: str, *, non_blocking: bool) -> torch.Tensor:
            asked.append((device, non_blocking, len(gpu.made)))
            return torch.tensor([0.5])

    numbers: Any = OnGpu()
    arriving = gpu_sync.PendingCopy(numbers, GPU)
    assert asked == [("cpu", True, 0)] and len(gpu.made) == 1, "the event comes behind the copy"
    assert not arriving.is_ready() and gpu.waited == 0
    gpu.reached = 1
    assert arriving.is_ready() and arriving.values() == [0.5]
    arriving = gpu_sync.PendingCopy(torch.tensor([1.5, -2.0]), torch.device("cpu"))
    assert arriving.is_ready() and arriving.values() == [1.5, -2.0]


class Model(torch.nn.Module):
    """A text model that gives what it is asked for, on the ``meta`` device."""

    device = torch.device("meta")

    def forward(self, ids: torch.Tensor, output_hidden_states: bool) -> Any:
        assert ids.device == self.device
        hidden = torch.empty(*ids.shape, 8, device="meta")
        return SimpleNamespace(last_hidden_state=hidden, hidden_states=[hidden] * 3, text_embeds=hidden[:, 0])


def test_copying_token_ids_does_not_wait() -> None:
    """Stacked on the CPU they would lie in memory that is not page-locked."""
    first, second = ClipText(None, Model(), normed=False), ClipText(None, Model(), normed=False, component="te2")
    tokens = [{"te1": torch.zeros(1, 77, dtype=torch.int64), "te2": torch.zeros(1, 77, dtype=torch.int64)} for _ in range(3)]
    with Copies() as copies:
        rows = DualClipText(first, second).conditions(tokens)
    assert [tuple(row["embeds"].shape) for row in rows] == [(77, 16)] * 3
    assert copies.waits == [False] * 6


def test_sizes_are_copied_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[list[list[float]]] = []

    class Locked:
        def __init__(self, numbers: torch.Tensor) -> None:
            pinned.append(numbers.tolist())
            self._numbers = numbers

        def to(self, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
            assert device == GPU and non_blocking
            return self._numbers

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: Locked(self))
    assert torch.equal(gpu_sync.to_device(torch.ones(2), GPU), torch.ones(2))
    assert gpu_sync.to_device(torch.ones(2), torch.device("meta")).device.type == "meta"

    def moved(self: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        return self

    monkeypatch.setattr(torch.Tensor, "to", moved)
    framings = [Framing(original=(640, 480), target=(512, 384), crop_top_left=(3, 5))]
    conditions = [{"embeds": torch.zeros(77, 8), "pooled": torch.zeros(4)}]
    inputs = SDXL.denoiser_inputs(conditions, framings, GPU, torch.float32)
    assert inputs["added_cond_kwargs"]["time_ids"].tolist() == [[480, 640, 3, 5, 384, 512]]
    assert pinned[1:] == [[[480, 640, 3, 5, 384, 512]]]
