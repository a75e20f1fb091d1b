"""The noise and timesteps that training draws."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from trainer.config.sections.objective import ObjectiveSection
from trainer.objective.noise import draw_noise
from trainer.objective.timesteps import draw_discrete


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_noise_is_torchs_own_gaussian() -> None:
    noise = draw_noise((4, 16, 16), ObjectiveSection(), generator())
    assert torch.equal(noise, torch.randn((4, 16, 16), generator=generator()))


def test_noise_offset_shifts_each_channel_by_one_number_of_the_stated_size() -> None:
    settings = ObjectiveSection(noise_offset=0.1)
    shifts = []
    for seed in range(400):
        difference = draw_noise((4, 8, 8), settings, generator(seed)) - torch.randn((4, 8, 8), generator=generator(seed))
        assert difference.flatten(1).std(dim=1).max() < 1e-6
        shifts += difference[:, 0, 0].tolist()
    assert statistics.pstdev(shifts) == pytest.approx(0.1, rel=0.1)


def test_noise_offset_equals_the_published_formula() -> None:
    draw = generator(3)
    plain, shift = torch.randn((4, 6, 10), generator=draw), torch.randn((4, 1, 1), generator=draw)
    noise = draw_noise((4, 6, 10), ObjectiveSection(noise_offset=0.07), generator(3))
    torch.testing.assert_close(noise, plain + 0.07 * shift, rtol=0, atol=1e-6)


def enlarged(small: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear interpolation of (4, h, w), pixel centres at half integers, edges repeated: one matrix a side."""

    def matrix(coarse: int, fine: int) -> torch.Tensor:
        weights = torch.zeros(fine, coarse, dtype=torch.float64)
        for index in range(fine):
            place = max(0.0, (index + 0.5) * coarse / fine - 0.5)
            low = min(int(place), coarse - 1)
            high = min(low + 1, coarse - 1)
            weights[index, low] += 1 - (place - low)
            weights[index, high] += place - low
        return weights

    return torch.einsum("yi,cij,xj->cyx", matrix(small.shape[1], height), small.double(), matrix(small.shape[2], width))


@pytest.mark.parametrize(("height", "width", "iterations"), [(16, 16, 3), (24, 40, 8), (8, 32, 8)])
def test_multires_noise_equals_the_published_recipe(height: int, width: int, iterations: int) -> None:
    """Each level is smaller by a random 2 to 4 to its power and weighs discount to its power, until a side is one pixel."""
    draw, discount = generator(5), 0.4
    expected = torch.randn((4, height, width), generator=draw).double()
    for level in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=draw))) ** level
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn((1, 4, rows, columns), generator=draw)[0]
        expected = expected + discount**level * enlarged(coarse, height, width)
        if rows == 1 or columns == 1:
            break
    expected = expected / expected.std()
    settings = ObjectiveSection(multires_iterations=iterations, multires_discount=discount)
    torch.testing.assert_close(draw_noise((4, height, width), settings, generator(5)).double(), expected, rtol=0, atol=1e-5)


def test_multires_noise_keeps_unit_deviation_and_adds_low_frequencies() -> None:
    settings = ObjectiveSection(multires_iterations=6, multires_discount=0.8)
    plain = torch.stack([draw_noise((4, 32, 32), ObjectiveSection(), generator(s)) for s in range(50)])
    rich = torch.stack([draw_noise((4, 32, 32), settings, generator(s)) for s in range(50)])
    assert rich.flatten(1).std(dim=1).mean().item() == pytest.approx(1.0, abs=1e-3)
    # the mean over 8x8 blocks of white noise has deviation 1/8; low frequencies raise it
    blocks = [torch.nn.functional.avg_pool2d(x, 8).std().item() for x in (plain, rich)]
    assert blocks[0] == pytest.approx(1 / 8, rel=0.1)
    assert blocks[1] > 2 * blocks[0]


def test_uniform_timesteps_cover_the_range_evenly_and_never_leave_it() -> None:
    settings = ObjectiveSection(timestep_min=200, timestep_max=300)
    source = generator()
    drawn = [int(draw_discrete(settings, source, 1000)) for _ in range(5000)]
    assert min(drawn) == 200 and max(drawn) == 299
    assert statistics.mean(drawn) == pytest.approx(249.5, abs=2)


def test_logit_normal_timesteps_have_the_median_of_their_formula() -> None:
    settings = ObjectiveSection(timestep_sampling="logit-normal", logit_mean=1.0, logit_std=0.7)
    source = generator()
    drawn = sorted(int(draw_discrete(settings, source, 1000)) for _ in range(5000))
    assert drawn[2500] == pytest.approx(1000 / (1 + math.exp(-1.0)), rel=0.03)
    assert drawn[0] >= 0 and drawn[-1] <= 999


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="use only one of them"):
        ObjectiveSection(min_snr_gamma=5, debiased=True)
    with pytest.raises(ValueError, match="is not below"):
        ObjectiveSection(timestep_min=500, timestep_max=400)
