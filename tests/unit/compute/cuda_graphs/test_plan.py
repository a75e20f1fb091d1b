"""Which runs use CUDA graphs, and the memory that they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.compute.helpers import recipe_before_step_one
from tests.unit.training_helpers import configuration, make_dataset
from trainer.compute.acceleration import Context
from trainer.dataset import open_dataset
from trainer.families import family_of, open_checkpoint
from trainer.plan import planning

pytestmark = pytest.mark.seconds


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
