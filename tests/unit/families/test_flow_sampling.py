"""Euler's method for rectified flows against diffusers' scheduler and the exact solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from trainer.families import Prediction, family_named
from trainer.families.flow_sampling import FlowEuler

FLOW = Prediction("flow")


@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0])
@pytest.mark.parametrize("steps", [8, 20, 25, 50])
def test_levels_and_steps_equal_diffusers(steps: int, shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    ours = FlowEuler(shift, 1000.0)
    ours.set_timesteps(steps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-6)
    draw = torch.Generator().manual_seed(1)
    mine = his = torch.randn(1, 4, 4, 4, generator=draw)
    for timestep, their_timestep in zip(ours.timesteps, theirs.timesteps, strict=True):
        velocity = torch.randn(1, 4, 4, 4, generator=draw)
        mine = ours.step(velocity, timestep, mine)[0]
        his = theirs.step(velocity, their_timestep, his, return_dict=False)[0]
    torch.testing.assert_close(mine, his, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_a_straight_path_is_followed_exactly(steps: int) -> None:
    latents, noise = torch.full((1, 4, 2, 2), 0.7), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    sampler = FlowEuler(3.0, 1.0)
    sampler.set_timesteps(steps)
    assert torch.equal(sampler.timesteps, sampler.sigmas[:-1])
    assert sampler.sigmas[0] == 1 and sampler.sigmas[-1] == 0
    x = noise
    for timestep in sampler.timesteps:
        x = sampler.step(noise - latents, timestep, x)[0]
    torch.testing.assert_close(x, latents, rtol=0, atol=1e-5)


def test_sdxl_samples_flows_with_shift_3_unless_another_is_set() -> None:
    family = family_named("sdxl")
    assert (family.sampling_scheduler(FLOW).shift, family.sampling_scheduler(FLOW, shift=2.0).shift) == (3.0, 2.0)
    assert family.sampling_scheduler(FLOW).timestep_multiplier == 1000.0


def test_image_to_image_starts_at_the_level_of_comfyuis_denoise() -> None:
    """KSampler: of int(steps / denoise) levels, the last ``steps``."""
    from trainer.training.monitoring.latent_sampling import noise_for

    sampler = FlowEuler(2.5, 1000.0)
    start, noise = torch.full((1, 4, 2, 2), 0.7), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noisy = noise_for(sampler, start, noise, 10, 0.5)
    level = 2.5 * 0.5 / (1 + 1.5 * 0.5)
    assert len(sampler.timesteps) == 10 and float(sampler.sigmas[0]) == pytest.approx(level)
    torch.testing.assert_close(noisy, (1 - level) * start + level * noise, rtol=0, atol=1e-6)
