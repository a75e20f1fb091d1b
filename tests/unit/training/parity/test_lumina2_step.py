"""Lumina 2's training: steps beside a plain loop around diffusers' transformer, whose weights are computed from LoRA factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn import functional as F

from random_checkpoints.lumina2 import DENOISER
from tests.tools.lumina2_in_diffusers import make_transformer, named_by_diffusers
from tests.unit.training.parity.plain_recipe import Gradients, distance, draws, train_ours
from tests.unit.training_helpers import apart, configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.config.run_config import RunConfig
from trainer.core import seeding
from trainer.core.errors import UserError
from trainer.families import open_checkpoint
from trainer.families.lumina2.lumina2_family import FAMILY
from trainer.lorafile import read_lora
from trainer.plan.inputs import open_inputs
from trainer.plan.planning import make_plan
from trainer.training.micro_batch import MicroBatch

STEPS = 3
RATE = 1e-3
CHANGES = {
    "objective.timestep_sampling": "logit-normal",
    "objective.timestep_shift": 6.0,
    "optimizer.lr": RATE,
    "optimizer.max_grad_norm": 0.0,
    "network.modulation": True,
    "network.final_layer": True,
    "training.epochs": 3,
    "training.batch_size": 4,
    "training.gradient_accumulation": 1,
}
LINEAR = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.1")


def adapted_layers() -> list[str]:
    """The layers that kohya's trainer adapts in a model with two blocks."""
    blocks = [f"{kind}.{index}" for kind in ("context_refiner", "noise_refiner", "layers") for index in range(2)]
    inside = [f"{block}.{layer}" for block in blocks for layer in LINEAR if not (block.startswith("context") and "adaLN" in layer)]
    return [*inside, "final_layer.linear", "final_layer.adaLN_modulation.1"]


def first_factors(config: RunConfig, layers: list[str]) -> dict[str, torch.Tensor]:
    """The trainer's first matrices, which are drawn in the order of the denoiser's modules."""
    denoiser: Any = FAMILY.load_denoiser(open_checkpoint(config.base.checkpoint), torch.float32)
    ordered = [name for name, _ in denoiser.named_modules() if name in layers]
    seed = seeding.derive_seed(config.training.seed, "weights") % 2**32
    adapter.inject(denoiser, ordered, rank=config.network.rank, alpha=config.network.alpha, seed=seed)
    return {name: value.clone().requires_grad_(True) for name, value in adapter.state(denoiser).items()}


def train_plainly(config: RunConfig) -> tuple[list[float], Gradients, dict[str, torch.Tensor]]:
    """Losses, gradients and last factors of AdamW: the error of the velocity towards the image, as kohya's trainer computes it."""
    file = load_file(config.base.checkpoint)
    base = {name.removeprefix(DENOISER): value.float() for name, value in file.items() if name.startswith(DENOISER)}
    del base["norm_final.weight"]
    transformer, layers = make_transformer(base), adapted_layers()
    factors, scale = first_factors(config, layers), config.network.alpha / config.network.rank
    optimizer = torch.optim.AdamW(factors.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)

    def loss_of(batch: MicroBatch) -> torch.Tensor:
        changes = {f"{name}.weight": scale * factors[f"{name}.up"] @ factors[f"{name}.down"] for name in layers}
        weights = named_by_diffusers({name: value + changes[name] if name in changes else value for name, value in base.items()})
        level = batch.timesteps.view(-1, 1, 1, 1)
        noisy = (1 - level) * batch.latents + level * batch.noise
        rows = [row["embeds"] for row in batch.conditions]
        longest = max(map(len, rows))
        captions = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
        velocity = functional_call(transformer, weights, (noisy, 1 - batch.timesteps, captions, mask), {"return_dict": False})[0]
        return F.mse_loss(velocity, batch.latents - batch.noise)

    losses, gradients = [], []
    for (batch,) in draws(config):
        loss = loss_of(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: value.grad.clone() for name, value in factors.items() if value.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, {name: value.detach() for name, value in factors.items()}


def test_steps_are_those_of_a_plain_loop_around_diffusers_transformer(
    tiny_lumina2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tiny_lumina2, make_dataset(tmp_path, 4), tmp_path / "runs", CHANGES)
    ours, gradients = train_ours(config, monkeypatch)
    losses, expected, factors = train_plainly(config)
    assert ours.status == 0 and len(losses) == STEPS == len(gradients)
    assert [step.loss for step in ours.steps] == pytest.approx(losses, rel=1e-5)
    assert set(gradients[0]) == set(expected[0]) and len(adapted_layers()) == 36
    assert apart(gradients[0], expected[0]) < 1e-4
    assert max(apart(mine, theirs) for mine, theirs in zip(gradients, expected, strict=True)) < 1e-3
    assert distance(ours.state(STEPS)["lora"], factors) < 1e-3


def test_a_run_makes_validation_images_and_a_lora_in_kohyas_names(tiny_lumina2: Path, tmp_path: Path) -> None:
    changes = {
        "training.max_steps": 1,
        "sample.every_epochs": 1,
        "sample.prompts": ["a (cat:1.3)"],
        "sample.negative": "worst quality",
        "training.gradient_checkpointing": True,
    }
    trained = train_here(configuration(tiny_lumina2, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    assert trained.status == 0
    assert (trained.run.samples / "epoch-001-00.png").is_file()
    weights = read_lora(trained.run.lora)
    assert (weights.family, weights.format, len(weights.modules)) == ("lumina2", "kohya", 30)
    assert {"lora_unet_layers_1_attention_qkv.lora_down.weight", "lora_unet_context_refiner_0_feed_forward_w2.alpha"} <= set(
        load_file(trained.run.lora)
    )
    assert weights.metadata["ss_base_model_version"] == "lumina2" and weights.metadata["ss_network_module"] == "networks.lora_lumina"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.text_encoder": True}, "does not train the text encoder of Lumina 2"),
        ({"optimizer.text_adapter_lr": 1e-5}, "text adapter"),
    ],
)
def test_training_the_text_encoder_is_refused(tiny_lumina2: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = configuration(tiny_lumina2, make_dataset(tmp_path, 1), tmp_path / "runs", changes)
    inputs = open_inputs(config)
    with pytest.raises(UserError, match=words):
        make_plan(config, inputs.dataset, inputs.family, inputs.checkpoint, torch.device("cpu"), "fp32")


def test_fp16_is_refused(tiny_lumina2: Path, tmp_path: Path) -> None:
    config = configuration(tiny_lumina2, make_dataset(tmp_path, 1), tmp_path / "runs", CHANGES)
    inputs = open_inputs(config)
    with pytest.raises(UserError, match="cannot be trained in fp16"):
        make_plan(config, inputs.dataset, inputs.family, inputs.checkpoint, torch.device("cpu"), "fp16")
