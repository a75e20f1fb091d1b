"""Rectified flow against its papers' formulas, evaluated here in plain Python, and the settings that it has."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config.sections.objective import ObjectiveSection
from trainer.core.errors import UserError
from trainer.families import Flow
from trainer.objective.diffusion import Diffusion
from trainer.objective.rectified_flow import RectifiedFlow

SDXL = RectifiedFlow(Flow(timestep_multiplier=1000.0))
NORMAL = statistics.NormalDist()
DRAWS = 4000


def drawn(pixels: int = 1024 * 1024, **settings: Any) -> list[float]:
    """Noise levels as training draws them, in order of size."""
    source, section = torch.Generator().manual_seed(3), ObjectiveSection(**settings)
    levels = [SDXL.draw_timestep(section, source, pixels) for _ in range(DRAWS)]
    assert {level.dtype for level in levels} == {torch.float32} and {level.shape for level in levels} == {torch.Size([])}
    return sorted(float(level) for level in levels)


def unshifted(level: float, shift: float) -> float:
    """The level that ``shift`` moves to ``level``: the inverse of s t / (1 + (s - 1) t)."""
    return level / (shift - (shift - 1) * level)


def logit(level: float) -> float:
    return math.log(level / (1 - level))


def cosmap(level: float) -> float:
    """The integral of the density 2 / (pi - 2 pi t + 2 pi t^2) from 0."""
    return (math.atan(2 * level - 1) + math.pi / 4) * 2 / math.pi


DISTRIBUTIONS: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {  # settings, and their distribution function
    "uniform": ({}, lambda t: t),
    "fixed shift": ({"timestep_shift": 2.5}, lambda t: unshifted(t, 2.5)),
    "shift towards detail": ({"timestep_shift": 0.5}, lambda t: unshifted(t, 0.5)),
    "logit-normal": ({"timestep_sampling": "logit-normal"}, lambda t: NORMAL.cdf(logit(t))),
    "sigmoid scale": ({"timestep_sampling": "logit-normal", "logit_std": 1.3}, lambda t: NORMAL.cdf(logit(t) / 1.3)),
    "mean": ({"timestep_sampling": "logit-normal", "logit_mean": -0.5}, lambda t: NORMAL.cdf(logit(t) + 0.5)),
    "logit-normal with shift": (
        {"timestep_sampling": "logit-normal", "timestep_shift": 3.0},
        lambda t: NORMAL.cdf(logit(unshifted(t, 3.0))),
    ),
    "cosmap": ({"timestep_sampling": "cosmap"}, cosmap),
    "part of the levels": ({"timestep_min": 200, "timestep_max": 600}, lambda t: (t - 0.2) / 0.4),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_noise_levels_follow_their_distribution(name: str) -> None:
    settings, distribution = DISTRIBUTIONS[name]
    levels = drawn(**settings)
    assert levels[0] >= 0 and levels[-1] <= 1
    # Kolmogorov's statistic is above 1.63 / sqrt(n) in one of a hundred samples
    assert max(abs(distribution(level) - (rank + 0.5) / DRAWS) for rank, level in enumerate(levels)) < 1.63 / DRAWS**0.5


@pytest.mark.parametrize(("width", "height", "shift"), [(1024, 1024, 1.0), (2048, 2048, 2.0), (512, 512, 0.5), (1536, 1024, 1.5**0.5)])
def test_resolution_shift_is_the_root_of_the_ratio_of_pixels(width: int, height: int, shift: float) -> None:
    plain, moved = drawn(), drawn(width * height, resolution_shift=True)
    assert moved == pytest.approx([shift * t / (1 + (shift - 1) * t) for t in plain], abs=1e-6)
    both = drawn(width * height, resolution_shift=True, timestep_shift=3.0)
    assert both == pytest.approx([3 * shift * t / (1 + (3 * shift - 1) * t) for t in plain], abs=1e-6)


def test_path_and_velocity_equal_the_papers_formulas() -> None:
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 5, 6, generator=draw) for _ in range(2))
    levels = torch.tensor([0.0, 0.3137, 1.0])
    noisy, velocity = SDXL.add_noise(latents, noise, levels), SDXL.target(latents, noise, levels)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy[0], latents[0]) and torch.equal(noisy[2], noise[2])
    for image, level in enumerate(levels.tolist()):
        expected = [
            (1 - level) * x + level * e for x, e in zip(latents[image].flatten().tolist(), noise[image].flatten().tolist(), strict=True)
        ]
        assert noisy[image].flatten().tolist() == pytest.approx(expected, abs=1e-6)
    # the velocity leads from any point of the path to both of its ends
    t = levels.view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - t * velocity, latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(noisy + (1 - t) * velocity, noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("multiplier", [1.0, 1000.0])
def test_denoiser_is_given_the_level_times_the_multiplier_in_fp32(multiplier: float) -> None:
    process, levels = RectifiedFlow(Flow(timestep_multiplier=multiplier)), torch.tensor([0.1234567, 0.9])
    timesteps = process.denoiser_timesteps(levels)
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == pytest.approx([0.1234567 * multiplier, 0.9 * multiplier], rel=1e-6)
    assert process.timesteps_at([125, 875]).tolist() == [0.125, 0.875]


def test_huber_width_follows_the_deviation_of_the_noise() -> None:
    levels = [0.0, 0.25, 0.5, 0.999]
    widths = {
        "constant": [0.1] * 4,
        "exponential": [0.1**t for t in levels],
        "snr": [0.9 * (1 - t) ** 2 + 0.1 for t in levels],  # of sigma = t / (1 - t): 1 / (1 + sigma) = 1 - t
    }
    for schedule, expected in widths.items():
        settings = ObjectiveSection.model_validate({"huber_schedule": schedule, "huber_c": 0.1})
        assert SDXL.huber_width(torch.tensor(levels), settings).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "setting", [("min_snr_gamma", 5.0), ("debiased", True), ("noise_offset", 0.05), ("multires_iterations", 6), ("zero_terminal_snr", "on")]
)
def test_settings_of_diffusions_are_refused_by_name(setting: tuple[str, Any]) -> None:
    name, value = setting
    with pytest.raises(UserError) as refused:
        RectifiedFlow.require_meaningful(ObjectiveSection(**{name: value}))
    assert f"objective.{name}" in refused.value.message and f"Set objective.{name} = " in refused.value.hint
    Diffusion.require_meaningful(ObjectiveSection(**{name: value}))


@pytest.mark.parametrize("setting", [("timestep_shift", 2.5), ("resolution_shift", True), ("timestep_sampling", "cosmap")])
def test_settings_of_flows_are_refused_for_a_diffusion(setting: tuple[str, Any]) -> None:
    name, value = setting
    with pytest.raises(UserError) as refused:
        Diffusion.require_meaningful(ObjectiveSection(**{name: value}))
    assert f"objective.{name}" in refused.value.message and f"Set objective.{name} = " in refused.value.hint
    RectifiedFlow.require_meaningful(ObjectiveSection(**{name: value}))
