"""Ten steps of every family beside an independent recipe with the same noise and timesteps: losses, gradients and weights.

The recipe is that of ``examples/text_to_image/train_text_to_image_lora.py`` and ``..._sdxl.py`` with ``--snr_gamma`` and
``--prediction_type``, written down plainly around diffusers' own ``add_noise``, ``get_velocity`` and ``compute_snr`` and peft's own
adapter; only the draws are the trainer's. For a rectified flow the recipe is that of Liu et al. 2022: the point at t of the straight line
from latents to noise, and the line's direction as the target; the UNet is given 1000 t. Batches of two, so that weights of single images
matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch.nn import functional as F

from tests.tools.parameters import mark_long
from tests.unit.training.parity.plain_recipe import Gradients, add_peft_adapter, distance, draws, is_linear_or_1x1, names, train_ours
from tests.unit.training_helpers import apart, configuration, make_dataset
from trainer.config.run_config import RunConfig
from trainer.families import family_named, open_checkpoint
from trainer.training.micro_batch import MicroBatch

pytestmark = pytest.mark.seconds

STEPS = 10
RATE = 1e-3
# At 64 px the tiny UNet's deepest group norm sees two numbers a group, and a division by their tiny difference now and then makes rounding
# a thousand times as large. SDXL, a level less deep but six times as slow, stays there.
PIXELS = {"sd1": 128, "sd2": 128, "sdxl": 64}
APART = {"sd1": 1e-4, "sd2": 1e-4, "sdxl": 5e-3}  # gradients of ten steps; found here: 4e-6 for SD 1.x and 2.x
MODULES = {"sd1": 192, "sd2": 192, "sdxl": 722, "shallow sdxl": 132}


@dataclass(frozen=True)
class Case:
    """A family and what it is trained with."""

    family: str
    velocity: bool = False
    zero_terminal: bool = False
    gamma: float = 0.0
    shallow: bool = False  # with fewer transformer blocks
    flow: bool = False

    @property
    def checkpoint(self) -> str:
        """What it is trained on."""
        return f"shallow {self.family}" if self.shallow else self.family

    @property
    def changes(self) -> dict[str, Any]:
        """The same in our settings."""
        if self.flow:
            return {"objective.prediction": "flow", "objective.timestep_shift": 2.5}
        return {
            "objective.prediction": "v-prediction" if self.velocity else "epsilon",
            "objective.zero_terminal_snr": "on" if self.zero_terminal else "off",
            "objective.min_snr_gamma": self.gamma,
        }


CASES = {  # SD 1.x without weights is in test_training_step.py
    "sd1 min-snr": Case("sd1", gamma=5.0),
    "sd2 v-prediction": Case("sd2", velocity=True),
    "sd2 v-prediction min-snr": Case("sd2", velocity=True, gamma=5.0),
    "sdxl": Case("sdxl"),
    "sdxl v-prediction zero terminal snr": Case("sdxl", velocity=True, zero_terminal=True, shallow=True),
    "sdxl rectified flow": Case("sdxl", flow=True, shallow=True),
}


@dataclass
class Recipe:
    """What diffusers' recipe saw."""

    losses: list[float] = field(default_factory=list)
    gradients: Gradients = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def scheduler_of(case: Case) -> Any:
    """DDPM with Stable Diffusion's betas."""
    kind = {"prediction_type": "v_prediction" if case.velocity else "epsilon", "rescale_betas_zero_snr": case.zero_terminal}
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, **kind)


def unet_with_lora(case: Case, config: RunConfig) -> Any:
    """The UNet with peft's adapter on every Linear and 1x1 convolution of the transformers, and the trainer's first down matrices."""
    family, checkpoint = family_named(case.family), open_checkpoint(config.base.checkpoint)
    unet, first = (family.load_denoiser(checkpoint, torch.float32) for _ in range(2))
    modules = [name for name, module in unet.named_modules() if ".attentions." in name and is_linear_or_1x1(module)]
    assert len(modules) == MODULES[case.checkpoint]
    add_peft_adapter(unet, first, modules, config)
    return unet.train()


def recipe_loss(case: Case, unet: Any, scheduler: Any, batch: MicroBatch) -> torch.Tensor:
    """One forward pass and its loss."""
    noisy, timesteps = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps.long()), batch.timesteps
    if case.flow:
        assert batch.timesteps.dtype == torch.float32 and batch.timesteps.min() >= 0 and batch.timesteps.max() <= 1
        levels = batch.timesteps[:, None, None, None]
        noisy, timesteps = batch.latents + levels * (batch.noise - batch.latents), 1000 * batch.timesteps
    extra = {}
    if case.family == "sdxl":
        pooled = torch.stack([condition["pooled"] for condition in batch.conditions])
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * batch.size)  # neither resized nor cut
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    predicted: torch.Tensor = unet(noisy, timesteps, torch.stack([c["embeds"] for c in batch.conditions]), **extra).sample
    wanted: torch.Tensor = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps) if case.velocity else batch.noise
    if case.flow:
        wanted = batch.noise - batch.latents
    if not case.gamma:
        plain: torch.Tensor = F.mse_loss(predicted, wanted)
        return plain
    snr = compute_snr(scheduler, batch.timesteps)
    weights = torch.minimum(snr, torch.full_like(snr, case.gamma)) / (snr + 1 if case.velocity else snr)
    per_image: torch.Tensor = F.mse_loss(predicted, wanted, reduction="none").mean(dim=(1, 2, 3))
    weighted: torch.Tensor = (per_image * weights).mean()
    return weighted


def train_by_recipe(case: Case, config: RunConfig) -> Recipe:
    """AdamW over the adapter, one batch a step."""
    unet, scheduler, seen = unet_with_lora(case, config), scheduler_of(case), Recipe()
    trained = names(unet)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    for (batch,) in draws(config):
        loss = recipe_loss(case, unet, scheduler, batch)
        loss.backward()
        seen.losses.append(float(loss.detach()))
        seen.gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()})
        optimizer.step()
        optimizer.zero_grad()
    seen.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return seen


@pytest.mark.parametrize("name", mark_long(CASES, "sd1 min-snr", "sd2 v-prediction min-snr", "sdxl"))
def test_ten_steps_are_those_of_diffusers_recipe(
    tiny_checkpoints: dict[str, Path], shallow_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    changes = {**case.changes, "training.epochs": 5, "training.batch_size": 2, "training.gradient_accumulation": 1}
    changes |= {"optimizer.lr": RATE, "optimizer.max_grad_norm": 0.0}
    checkpoint = shallow_sdxl if case.shallow else tiny_checkpoints[case.family]
    config = configuration(checkpoint, make_dataset(tmp_path, 4, resolution=PIXELS[case.family]), tmp_path / "runs", changes)
    ours, gradients = train_ours(config, monkeypatch)
    recipe = train_by_recipe(case, config)
    assert ours.status == 0 and len(recipe.losses) == STEPS == len(gradients)
    assert ours.steps[0].loss == pytest.approx(recipe.losses[0], rel=1e-5)
    assert [step.loss for step in ours.steps] == pytest.approx(recipe.losses, rel=1e-4)
    # the first step's gradients are of the same weights; the others' come from weights that rounding has moved a little apart
    assert list(gradients[0]) == list(recipe.gradients[0])
    assert apart(gradients[0], recipe.gradients[0]) < 1e-4
    assert max(apart(mine, theirs) for mine, theirs in zip(gradients, recipe.gradients, strict=True)) < APART[case.family]
    assert distance(ours.state(STEPS)["lora"], recipe.weights) < 2e-3
