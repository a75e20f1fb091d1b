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


def fixed_batch(unet: Any, family: Any, side: int, timestep: float) -> micro_batch.MicroBatch:
    """One latent of a square image, noise, timestep and conditioning that never change."""
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, *family.latents.shape(side, side), generator=draw) for _ in range(2))
    condition = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in family.empty_condition(unet).items()}
    framings = [Framing((side, side), (side, side))]
    return micro_batch.MicroBatch(latents, noise, noise, torch.tensor([timestep]), [condition], torch.ones(1), None, framings)


def overfit(
    family: Any, unet: Any, batch: micro_batch.MicroBatch, prediction: str, targets: str, steps: int
) -> tuple[list[float], torch.Tensor]:
    """Losses of a LoRA of rank 8 that is trained on the batch, and the target of the prediction."""
    settings = ObjectiveSection()
    network = NetworkSection.model_validate({"rank": 8, "alpha": 8.0, "targets": targets})
    adapter.adapt(unet.train(), family.denoiser_targets(unet, network.targets), network, 0)
    optimizer = make_optimizer(list(adapter.pairs(unet)), OptimizerSection(weight_decay=0.0), 1e-2)
    process = make_noise_process(family, Prediction(prediction))
    noisy = process.add_noise(batch.latents, batch.input_noise, batch.timesteps)
    target = process.target(batch.latents, batch.noise, batch.timesteps)
    inputs = family.denoiser_inputs(batch.conditions, batch.framings, CPU, torch.float32)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        predicted = unet(noisy, batch.timesteps, **inputs, return_dict=False)[0]
        loss = denoising_loss.loss(predicted, target, batch.timesteps, batch.weights, None, settings, process)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, target


@pytest.mark.parametrize("name", mark_long(KINDS, "sd2", "sdxl"))
def test_one_image_at_one_noise_level_overfits_nearly_to_the_floor(tiny_checkpoints: dict[str, Path], name: str) -> None:
    family = family_named(name)
    unet: Any = family.load_denoiser(open_checkpoint(str(tiny_checkpoints[name])), torch.float32)
    losses, _ = overfit(family, unet, fixed_batch(unet, family, 64, 400), KINDS[name], TARGETS[name], STEPS)
    assert losses[0] > 0.5  # nothing is learned yet: the target has unit variance
    assert min(losses[-5:]) < 0.05 * losses[0], losses[::10]


def floor_of_last_layer(unet: Any, target: torch.Tensor, timestep: torch.Tensor) -> float:
    """The lowest loss with any input of Anima's last norm and layer, which are not trained: found with tokens as parameters."""
    patches = target.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    tokens = torch.nn.Parameter(torch.randn(1, patches.shape[1], unet.proj_out.in_features, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        modulation, embedded = unet.time_embed(tokens, timestep)
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (unet.proj_out(unet.norm_out(tokens, embedded, modulation)) - patches).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_one_image_overfits_to_the_floor_of_animas_last_layer(tiny_anima: Path) -> None:
    family = family_named("anima")
    unet: Any = family.load_denoiser(open_checkpoint(str(tiny_anima)), torch.float32)
    batch = fixed_batch(unet, family, 32, 0.4)
    losses, target = overfit(family, unet, batch, "flow", "all-linear", 2 * STEPS)
    floor = floor_of_last_layer(unet, target, batch.timesteps)
    assert 0 < floor < 0.1 * losses[0]
    assert 0.999 * floor < losses[-1] < 1.02 * floor


@pytest.mark.long
def test_one_image_overfits_to_the_floor_of_lumina2s_last_layer(tiny_lumina2: Path) -> None:
    family = family_named("lumina2")
    denoiser: Any = family.load_denoiser(open_checkpoint(str(tiny_lumina2)), torch.float32)
    batch = fixed_batch(denoiser, family, 32, 0.4)
    losses, target = overfit(family, denoiser, batch, "flow", "all-linear", 2 * STEPS)
    # the lowest loss with any input of the last layer, which is not trained: found with tokens as parameters
    patches = target.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    tokens = torch.nn.Parameter(torch.randn(1, patches.shape[1], denoiser.config.width, generator=torch.Generator().manual_seed(2)))
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        predicted = denoiser.final_layer(tokens, denoiser.t_embedder(1 - batch.timesteps, torch.float32))
        loss = (predicted + patches).square().mean()  # its velocity is that towards the image
        loss.backward()
        optimizer.step()
    floor = float(loss.detach())
    assert 0 < floor < 0.2 * losses[0]
    assert 0.999 * floor < losses[-1] < 1.02 * floor
