"""Training steps equal those of an independent trainer: diffusers' recipe written down plainly, in fp32 on the CPU.

From ``examples/text_to_image/train_text_to_image_lora.py`` of diffusers: ``DDPMScheduler.add_noise``, mean squared error against the
noise, LoRA by peft's own adapter on the UNet, AdamW, ``clip_grad_norm_`` and a schedule. Only the draws are taken from the trainer:
which image comes when, its latent, noise, timestep and caption, and the first values of the down matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

from tests.unit.training.parity.plain_recipe import distance, draws, is_linear_or_1x1, names
from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.config.run_config import RunConfig
from trainer.core import seeding
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.training.micro_batch import MicroBatch

pytestmark = pytest.mark.seconds

TRAINING_STEPS = 10
ACCUMULATION = 2  # of three images an epoch: steps of two and of one micro-batch
LIMIT = 0.02  # below the first gradients' norm, so that clipping matters
WARMUP = 3
RATE = 1e-3


@dataclass
class Plain:
    """What the plain trainer saw."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017), at optimiser step ``step`` from 0."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train_plainly(config: RunConfig, steps: list[list[MicroBatch]]) -> Plain:
    """diffusers' recipe."""
    checkpoint = open_checkpoint(config.base.checkpoint)
    unet: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    kohya = [name for name, module in unet.named_modules() if ".attentions." in name and is_linear_or_1x1(module)]
    assert len(kohya) == 192
    first = FAMILY.load_denoiser(checkpoint, torch.float32)
    seed = seeding.derive_seed(config.training.seed, "weights") % 2**32
    adapter.inject(first, kohya, rank=config.network.rank, alpha=config.network.alpha, seed=seed)
    start = adapter.state(first)
    unet.add_adapter(LoraConfig(r=config.network.rank, lora_alpha=config.network.alpha, target_modules=kohya))
    trained = names(unet)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])
    unet.train()
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
    seen = Plain()
    for number, group in enumerate(steps):
        total = 0.0
        for batch in group:
            noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            context = torch.stack([condition["embeds"] for condition in batch.conditions])
            predicted = unet(noisy, batch.timesteps, context).sample
            loss = torch.nn.functional.mse_loss(predicted, batch.noise) / len(group)
            loss.backward()
            total += float(loss.detach())
        seen.norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), LIMIT)))
        lr = RATE * factor(number, WARMUP, len(steps))
        for group_of_parameters in optimizer.param_groups:
            group_of_parameters["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        seen.losses.append(total)
        seen.lrs.append(lr)
    seen.moments = {name: optimizer.state[parameter]["exp_avg"] for name, parameter in trained.items()}
    seen.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return seen


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Plain]:
    """The same ten steps by the trainer and by the plain recipe."""
    changes = {
        "training.epochs": 5,
        "training.gradient_accumulation": ACCUMULATION,
        "optimizer.lr": RATE,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": WARMUP,
        "optimizer.max_grad_norm": LIMIT,
    }
    folder = tmp_path_factory.mktemp("parity")
    config = configuration(tiny_checkpoint, make_dataset(folder, 3, resolution=128), folder / "runs", changes)
    ours = train_here(config)
    assert ours.status == 0
    return ours, train_plainly(config, draws(config))


def test_ten_losses_match_diffusers_recipe(both: tuple[Trained, Plain]) -> None:
    ours, plain = both
    assert len(plain.losses) == TRAINING_STEPS
    assert [step.loss for step in ours.steps] == pytest.approx(plain.losses, rel=1e-4)


def test_gradients_match_diffusers_recipe(both: tuple[Trained, Plain]) -> None:
    ours, plain = both
    # AdamW's first moment is the mean of all gradients it saw, each step's past weighing 0.9 (Kingma & Ba 2015)
    state = ours.state(TRAINING_STEPS)
    assert list(state["lora"]) == list(plain.moments)
    pairs = [(state["optimizer"]["state"][index]["exp_avg"], moment) for index, moment in enumerate(plain.moments.values())]
    apart = sum(float((first - second).square().sum()) for first, second in pairs)
    assert math.sqrt(apart / sum(float(second.square().sum()) for _, second in pairs)) < 2e-3


def test_gradient_norms_are_logged_before_clipping(both: tuple[Trained, Plain]) -> None:
    ours, plain = both
    assert [step.grad_norm for step in ours.steps] == pytest.approx(plain.norms, rel=1e-3)
    assert min(step.grad_norm for step in ours.steps) > 2 * LIMIT
    moments = ours.state(TRAINING_STEPS)["optimizer"]["state"].values()
    mean = math.sqrt(sum(float(moment["exp_avg"].square().sum()) for moment in moments))
    assert mean <= LIMIT * (1 - 0.9**TRAINING_STEPS) * 1.001  # what ten gradients of the limit's norm could at most add up to


def test_logged_learning_rates_are_those_of_the_steps(both: tuple[Trained, Plain]) -> None:
    ours, plain = both
    assert [step.lr for step in ours.steps] == pytest.approx(plain.lrs, rel=1e-6, abs=1e-12)
    assert ours.steps[WARMUP].lr == pytest.approx(RATE)


def test_weights_after_ten_steps_match_diffusers_recipe(both: tuple[Trained, Plain]) -> None:
    ours, plain = both
    final = ours.state(TRAINING_STEPS)["lora"]
    assert distance(final, plain.weights) < 2e-3
    learned = [name for name, value in final.items() if name.endswith(".up") and float(value.abs().max()) > 0]
    assert len(learned) > 180  # where the picture has shrunk to one pixel, queries and keys of self-attention have no gradient


def test_two_accumulated_batches_of_one_are_one_batch_of_two(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 1, repeats=2, resolution=128)
    trained = [
        train_here(
            configuration(
                tiny_checkpoint,
                folder,
                tmp_path / name,
                {"training.batch_size": size, "training.gradient_accumulation": times, "training.epochs": 3},
            )
        )
        for name, size, times in (("one", 1, 2), ("two", 2, 1))
    ]
    first, second = trained
    assert len(first.steps) == len(second.steps) == 3
    assert [step.loss for step in first.steps] == pytest.approx([step.loss for step in second.steps], rel=1e-4)
    assert [step.grad_norm for step in first.steps] == pytest.approx([step.grad_norm for step in second.steps], rel=1e-3)
    assert distance(first.state(3)["lora"], second.state(3)["lora"]) < 2e-3


def test_checkpointing_changes_memory_and_not_the_result(tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    changes = {"training.max_steps": 2}
    plain = train_here(configuration(tiny_checkpoint, dataset_folder, tmp_path / "plain", changes))
    thrifty = train_here(
        configuration(tiny_checkpoint, dataset_folder, tmp_path / "thrifty", {**changes, "training.gradient_checkpointing": True})
    )
    assert [step.loss for step in plain.steps] == pytest.approx([step.loss for step in thrifty.steps], rel=1e-5)
    assert [step.grad_norm for step in plain.steps] == pytest.approx([step.grad_norm for step in thrifty.steps], rel=1e-4)


def test_the_untrained_adapter_changes_nothing(tiny_checkpoint: Path) -> None:
    """In double precision: in single precision, results differ by rounding, as a 1 x 1 convolution with LoRA is a matrix product."""
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    unet = FAMILY.load_denoiser(checkpoint, torch.float32)
    assert isinstance(unet, UNet2DConditionModel)
    unet.double()
    arguments = (torch.randn(1, 4, 8, 8).double(), torch.tensor([5]), torch.randn(1, 77, 64).double())
    with torch.no_grad():
        before = unet(*arguments).sample
        adapter.inject(unet, FAMILY.denoiser_targets(unet, "all-linear"), rank=4, alpha=4, seed=1)
        torch.testing.assert_close(unet(*arguments).sample, before, rtol=0, atol=1e-12)


def test_only_the_adapter_is_trained_and_attention_alone_is_128_modules(tiny_checkpoint: Path) -> None:
    unet = FAMILY.load_denoiser(open_checkpoint(str(tiny_checkpoint)), torch.float32)
    assert len(FAMILY.denoiser_targets(unet, "all-linear")) == 192
    attention = FAMILY.denoiser_targets(unet, "attention")
    assert len(attention) == 128
    adapter.inject(unet, attention, rank=3, alpha=3, seed=1)
    trained = {id(parameter) for parameter in adapter.parameters(unet)}
    assert {id(parameter) for parameter in unet.parameters() if parameter.requires_grad} == trained
    assert all(pair.down.shape[0] == pair.up.shape[1] == 3 for pair in adapter.pairs(unet))
