"""Devices and GPU synchronisation, with a simulated GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.compute.attention_choice import choose_attention
from trainer.compute.quantised_base import codes as quantisation
from trainer.core import devices
from trainer.core.gpu_sync import StepLimiter

GPU = torch.device("cuda")


def test_step_limiter_lets_the_cpu_queue_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    waited: list[int] = []

    class Event:
        def __init__(self) -> None:
            made.append(self)

        def record(self) -> None:
            """Nothing runs."""

        def synchronize(self) -> None:
            waited.append(made.index(self))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    queue, idle = StepLimiter(GPU), StepLimiter(torch.device("cpu"))
    after = []
    for _ in range(5):
        idle.step()
        queue.step()
        after.append(list(waited))
    assert after == [[], [], [0], [0, 1], [0, 1, 2]]
    assert len(made) == 5


@pytest.mark.parametrize(
    ("capability", "precision", "attention"),
    [((7, 5), "fp16", "xformers"), ((8, 6), "bf16", "xformers"), ((9, 0), "bf16", "sdpa")],
)
def test_the_gpu_generation_decides_precision_and_attention(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str, attention: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tried: list[Any] = []
    monkeypatch.setattr("trainer.compute.attention_choice._try_xformers", lambda *rest: tried.append(rest))
    assert devices.pick_precision("auto", GPU) == precision
    chosen, problem = choose_attention("auto", GPU, torch.float16)
    assert problem == ""
    assert (chosen, bool(tried)) == (attention, attention == "xformers")


def test_nf4_levels_are_created_once_per_device() -> None:
    pytest.importorskip("bitsandbytes")
    quantisation._nf4_levels.cache_clear()
    weight = torch.randn(8, 64)
    codes, scales = quantisation.quantise_weight(weight, "nf4")
    for _ in range(3):
        unpacked = quantisation.dequantise_weight(codes, scales, "nf4", (8, 64), torch.float32)
    assert (unpacked - weight).abs().mean() < 0.1 * weight.abs().mean()
    assert quantisation._nf4_levels.cache_info().misses == 1
