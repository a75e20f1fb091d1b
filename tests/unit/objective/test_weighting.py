"""Each weighting and loss against its paper's formula, evaluated here in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.config.sections.objective import ObjectiveSection
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.objective import weighting
from trainer.objective.diffusion import Diffusion

# SD 1.x's schedule, computed from its definition: betas linear in the square root
_ROOTS = [math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999 for i in range(1000)]
ALPHAS: list[float] = []
_product = 1.0
for _root in _ROOTS:
    _product *= 1 - _root**2
    ALPHAS.append(_product)

TIMESTEPS = [0, 1, 17, 250, 500, 731, 999]


def snr_at(timestep: int) -> float:
    return ALPHAS[timestep] / (1 - ALPHAS[timestep])


def test_signal_to_noise_equals_the_ratio_of_variances_of_diffusers_schedule() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = weighting.signal_to_noise(scheduler.alphas_cumprod, torch.tensor(TIMESTEPS))
    assert snr.tolist() == pytest.approx([snr_at(t) for t in TIMESTEPS], rel=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_equals_the_papers_formula(gamma: float, velocity: bool) -> None:
    expected = [min(snr_at(t), gamma) / (snr_at(t) + 1 if velocity else snr_at(t)) for t in TIMESTEPS]
    snr = torch.tensor([snr_at(t) for t in TIMESTEPS], dtype=torch.float64)
    assert weighting.min_snr(snr, gamma, velocity=velocity).tolist() == pytest.approx(expected, rel=1e-9)


def test_min_snr_at_zero_snr_is_one_for_epsilon_and_zero_for_velocity() -> None:
    zero = torch.zeros(1)
    assert weighting.min_snr(zero, 5.0, velocity=False).item() == 1.0
    assert weighting.min_snr(zero, 5.0, velocity=True).item() == 0.0


@pytest.mark.parametrize("velocity", [False, True])
def test_debiased_estimation_equals_the_papers_formula_cut_at_1000(velocity: bool) -> None:
    cut = [min(snr_at(t), 1000.0) for t in TIMESTEPS]
    expected = [1 / (s + 1) if velocity else 1 / math.sqrt(s) for s in cut]
    snr = torch.tensor([snr_at(t) for t in TIMESTEPS], dtype=torch.float64)
    assert weighting.debiased(snr, velocity=velocity).tolist() == pytest.approx(expected, rel=1e-9)


def test_huber_width_follows_each_schedule() -> None:
    diffusion, steps, base = Diffusion(SCHEDULE), torch.tensor(TIMESTEPS), 0.1
    exponential = [math.exp(math.log(base) / 1000 * t) for t in TIMESTEPS]
    sigma = [math.sqrt((1 - ALPHAS[t]) / ALPHAS[t]) for t in TIMESTEPS]
    by_snr = [(1 - base) / (1 + s) ** 2 + base for s in sigma]
    expected = {"constant": [base] * len(TIMESTEPS), "exponential": exponential, "snr": by_snr}
    for schedule, widths in expected.items():
        settings = ObjectiveSection.model_validate({"huber_schedule": schedule, "huber_c": base})
        assert diffusion.huber_width(steps, settings).tolist() == pytest.approx(widths, rel=1e-3)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_robust_losses_equal_their_formula(kind: str) -> None:
    predicted, target, c = torch.tensor([[[[0.0, 0.3, -2.0]]]]), torch.tensor([[[[0.0, 0.0, 5.0]]]]), 0.2
    got = weighting.error(kind, predicted, target, torch.tensor([c])).flatten().tolist()
    expected = [2 * (c if kind == "huber" else 1) * (math.sqrt(d * d + c * c) - c) for d in (0.0, 0.3, -7.0)]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_huber_is_squared_for_small_and_linear_for_large_differences() -> None:
    small = weighting.error("huber", torch.full((1, 1, 1, 1), 1e-3), torch.zeros(1, 1, 1, 1), torch.tensor([1.0])).item()
    assert small == pytest.approx(1e-6, rel=0.1)
    near, far = (
        weighting.error("smooth_l1", torch.full((1, 1, 1, 1), d), torch.zeros(1, 1, 1, 1), torch.tensor([0.1])).item()
        for d in (50.0, 100.0)
    )
    assert far - near == pytest.approx(100.0, rel=1e-3)  # slope 2
