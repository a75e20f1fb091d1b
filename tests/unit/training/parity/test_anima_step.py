"""Anima's training: steps beside a plain loop around diffusers' transformer and peft's adapter, and resuming to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.unit.training.parity.plain_anima import plain_denoiser, plain_steps, replace_torchvision
from tests.unit.training.parity.plain_recipe import Gradients, distance, draws, names, train_ours
from tests.unit.training_helpers import apart, configuration, make_dataset, train_here
from trainer.config.run_config import RunConfig
from trainer.core.errors import UserError
from trainer.plan.inputs import open_inputs
from trainer.plan.planning import make_plan
from trainer.training.micro_batch import MicroBatch

STEPS = 4
RATE = 1e-3
CHANGES = {
    "objective.timestep_sampling": "logit-normal",
    "objective.logit_std": 1.3,
    "optimizer.lr": RATE,
    "optimizer.max_grad_norm": 0.0,
    "training.epochs": 2,
    "training.batch_size": 2,
    "training.gradient_accumulation": 1,
}


def train_plainly(config: RunConfig) -> tuple[list[float], Gradients, dict[str, torch.Tensor]]:
    """Losses, gradients and last weights of AdamW over the adapter, one batch a step."""
    denoiser = plain_denoiser(config)
    trained = names(denoiser)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)

    def context(batch: MicroBatch) -> torch.Tensor:
        return torch.stack([F.pad(row["embeds"], (0, 0, 0, 512 - len(row["embeds"]))) for row in batch.conditions])

    return plain_steps(denoiser, trained, optimizer, draws(config), context)


@pytest.mark.parametrize("beyond", [{}, {"network.modulation": True, "network.final_layer": True}], ids=["kohya's", "all"])
def test_steps_are_those_of_a_plain_loop_around_diffusers_transformer(
    tiny_anima: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beyond: dict[str, Any]
) -> None:
    replace_torchvision(monkeypatch)
    config = configuration(tiny_anima, make_dataset(tmp_path, 4), tmp_path / "runs", {**CHANGES, **beyond})
    ours, gradients = train_ours(config, monkeypatch)
    losses, expected, weights = train_plainly(config)
    assert ours.status == 0 and len(losses) == STEPS == len(gradients)
    assert [step.loss for step in ours.steps] == pytest.approx(losses, rel=1e-5)
    assert list(gradients[0]) == list(expected[0])
    assert apart(gradients[0], expected[0]) < 1e-5
    assert max(apart(mine, theirs) for mine, theirs in zip(gradients, expected, strict=True)) < 1e-4
    assert distance(ours.state(STEPS)["lora"], weights) < 1e-3


def test_a_stopped_run_resumes_to_the_same_bits(tiny_anima: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 4)
    changes = {**CHANGES, "training.checkpoint_every": 2, "training.keep_checkpoints": 0}
    whole = train_here(configuration(tiny_anima, dataset, tmp_path / "whole", changes))
    expected = whole.run.lora.read_bytes()
    for path in (whole.run.lora, whole.run.result):
        path.unlink()
    for path in whole.run.checkpoints.glob("step-000004*"):
        for file in path.rglob("*"):
            file.unlink()
        path.rmdir()
    again = train_here(configuration(tiny_anima, dataset, tmp_path / "whole", changes))
    assert again.status == 0
    assert again.run.lora.read_bytes() == expected
    assert [step.step for step in again.steps[-2:]] == [3, 4]


def test_image_sizes_that_are_no_multiples_of_16_are_refused(tiny_anima: Path, tmp_path: Path) -> None:
    config = configuration(tiny_anima, make_dataset(tmp_path, 1, resolution=72), tmp_path / "runs", CHANGES)
    with pytest.raises(UserError, match="72x72 pixels, but Anima needs sides that are multiples of 16"):
        train_here(config)


def test_fp16_is_refused(tiny_anima: Path, tmp_path: Path) -> None:
    config = configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", CHANGES)
    inputs = open_inputs(config)
    with pytest.raises(UserError, match="cannot be trained in fp16"):
        make_plan(config, inputs.dataset, inputs.family, inputs.checkpoint, torch.device("cpu"), "fp16")
    plan = make_plan(config, inputs.dataset, inputs.family, inputs.checkpoint, torch.device("cpu"), "bf16")
    assert (plan.text_encoder, plan.vae) == ("qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors")
    assert inputs.config.base.vae == str(tiny_anima.parents[1] / "vae" / plan.vae)
