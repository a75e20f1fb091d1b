"""The first losses of every family and optimiser stay what they were when they were written down.

A change here means that training changed: if that was intended, record them again with
ANIMELORA_RECORD=1, and give the reason in the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tools.parameters import mark_long
from tests.unit.training_helpers import configuration, train_here

pytestmark = pytest.mark.seconds

GOLDEN = Path(__file__).with_name("golden_losses.json")
PLAIN: dict[str, Any] = {"optimizer.lr": 1e-3, "training.epochs": 2}
# what does not depend on the layers of a model is trained on a model with few
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "sdxl v-prediction": ("shallow sdxl", {"objective.prediction": "v-prediction", "objective.zero_terminal_snr": "on"}),
    "sd1 adafactor": ("shallow sd1", {"optimizer.name": "adafactor"}),
    "sd1 lion": ("shallow sd1", {"optimizer.name": "lion", "optimizer.lr": 1e-3}),
    "sd1 prodigy": ("shallow sd1", {"optimizer.name": "prodigy", "optimizer.lr": 1.0}),
    "sd1 schedule-free": ("shallow sd1", {"optimizer.name": "schedule-free"}),
    "sd1 min-snr": ("shallow sd1", {"objective.min_snr_gamma": 5.0}),
    "sd1 debiased": ("shallow sd1", {"objective.debiased": True}),
    "sd1 huber": ("shallow sd1", {"objective.loss": "huber"}),
    "sd1 noise": ("shallow sd1", {"objective.noise_offset": 0.05, "objective.multires_iterations": 6, "objective.input_perturbation": 0.1}),
    "sd1 logit-normal": ("shallow sd1", {"objective.timestep_sampling": "logit-normal"}),
    "sd1 rex": ("shallow sd1", {"optimizer.schedule": "rex", "optimizer.warmup_steps": 1}),
    "sd1 cosine lora+": ("shallow sd1", {"optimizer.schedule": "cosine", "optimizer.lora_plus_ratio": 4.0, "optimizer.lr": 3e-3}),
    "sd1 rslora": ("shallow sd1", {"network.rslora": True}),
    "sd1 adamw8bit": ("shallow sd1", {"optimizer.name": "adamw8bit"}),
    "sd2 v-prediction": ("sd2", {"objective.prediction": "v-prediction"}),
    "sd1 locon": ("sd1", {"network.targets": "all-linear+conv"}),
    "sd1 dora": ("sd1", {"network.dora": True}),
    "sd1 text encoder": ("sd1", {"network.text_encoder": True, "optimizer.lr": 1e-3}),
    "sdxl text encoders": ("shallow sdxl", {"network.text_encoder": True, "optimizer.lr": 1e-3}),
    "sd1 clip skip and 150 tokens": ("sd1", {"training.clip_skip": 2, "training.max_tokens": 150, "optimizer.lr": 1e-3}),
}
NEEDS = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}


# the full numbers of layers of some kinds of runs, which other tests compare with plain recipes
FULL_DEPTH = ("sdxl", "sd2 v-prediction", "sd1 locon", "sd1 dora", "sdxl text encoders", "sd1 clip skip and 150 tokens")


@pytest.mark.parametrize("name", mark_long(CASES, *FULL_DEPTH))
def test_the_first_losses_are_those_on_record(
    tiny_checkpoints: dict[str, Path], shallow_checkpoint: Path, shallow_sdxl: Path, dataset_folder: Path, runs: Path, name: str
) -> None:
    checkpoint, changes = CASES[name]
    if library := NEEDS.get(changes.get("optimizer.name", "")):
        pytest.importorskip(library)
    checkpoints = {**tiny_checkpoints, "shallow sd1": shallow_checkpoint, "shallow sdxl": shallow_sdxl}
    trained = train_here(configuration(checkpoints[checkpoint], dataset_folder, runs, {**PLAIN, **changes}))
    assert trained.status == 0
    losses = [step.loss for step in trained.steps]
    assert len(losses) == 6
    known: dict[str, list[float]] = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if os.environ.get("ANIMELORA_RECORD"):
        known[name] = [round(loss, 6) for loss in losses]
        GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    # the first step is exact work on fixed weights; later ones also carry what other kernels round differently
    assert losses[0] == pytest.approx(known[name][0], rel=1e-4)
    assert losses == pytest.approx(known[name], rel=5e-3)
