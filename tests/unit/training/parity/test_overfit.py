"""From one picture, at one noise and timestep, every family learns to predict nearly what it should: the loss falls close to its floor.

The floor of this objective is zero: with the noise, the timestep and the latent fixed there is one target, and enough weights for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.parameters import mark_long
from trainer.adapters import adapter
from trainer.config.sections.network import NetworkSection
from trainer.config.sections.objective import ObjectiveSection
from trainer.config.sections.optimizer import OptimizerSection
from trainer.families import Framing, Prediction, family_named, open_checkpoint
from trainer.objective import denoising_loss
from trainer.objective.choose import make_noise_process
from trainer.training import micro_batch
from trainer.training.optimizers import make_optimizer

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")
STEPS = 40
KINDS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
# SDXL's finest level has no transformer: without its convolutions LoRA cannot reach single pixels
TARGETS = {"sd1": "all-linear", "sd2": "all-linear", "sdxl": "all-linear+conv"}


def fixed_batch(unet: Any, family: Any) -> micro_batch.MicroBatch:
    """One latent, noise, timestep and conditioning that never change."""
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=draw) for _ in range(2))
    condition = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in family.empty_condition(unet).items()}
    framings = [Framing((64, 64), (64, 64))]
    return micro_batch.MicroBatch(latents, noise, noise, torch.tensor([400]), [condition], torch.ones(1), None, framings)


@pytest.mark.parametrize("name", mark_long(KINDS, "sdxl"))
def test_one_image_at_one_noise_level_overfits_nearly_to_the_floor(tiny_checkpoints: dict[str, Path], name: str) -> None:
    family, settings = family_named(name), ObjectiveSection()
    unet: Any = family.load_denoiser(open_checkpoint(str(tiny_checkpoints[name])), torch.float32)
    network = NetworkSection.model_validate({"rank": 8, "alpha": 8.0, "targets": TARGETS[name]})
    adapter.adapt(unet, family.denoiser_targets(unet, network.targets), network, 0)
    optimizer = make_optimizer(list(adapter.pairs(unet)), OptimizerSection(weight_decay=0.0), 1e-2)
    process = make_noise_process(family, Prediction(KINDS[name]))
    batch = fixed_batch(unet.train(), family)
    noisy = process.add_noise(batch.latents, batch.input_noise, batch.timesteps)
    target = process.target(batch.latents, batch.noise, batch.timesteps)
    inputs = family.denoiser_inputs(batch.conditions, batch.framings, CPU, torch.float32)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        predicted = unet(noisy, batch.timesteps, **inputs).sample
        loss = denoising_loss.loss(predicted, target, batch.timesteps, batch.weights, None, settings, process)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.5  # nothing is learned yet: the target has unit variance
    assert min(losses[-5:]) < 0.05 * losses[0], losses[::10]
