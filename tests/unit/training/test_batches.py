"""What a batch holds: latents as diffusers encodes them, mirrored and masked as the dataset states, and the loss over them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config.sections.objective import ObjectiveSection
from trainer.core.errors import UserError
from trainer.core.seeding import derive_seed
from trainer.dataset import Dataset, TrainingHints, open_dataset
from trainer.dataset.loading import batch_order
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.objective.denoising_loss import loss
from trainer.objective.diffusion import Diffusion
from trainer.training.caching.cache import Cache
from trainer.training.caching.latent_cache import fill_latents
from trainer.training.caching.prompt_cache import fill_prompts
from trainer.training.micro_batch import build_micro_batch

PLAIN = ObjectiveSection()
DIFFUSION = Diffusion(SCHEDULE)
CPU = torch.device("cpu")


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def filled(shallow_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Cache]:
    """The dataset with mirroring and half a mask, and its cache."""
    import shutil

    folder = tmp_path_factory.mktemp("filled") / "data"
    shutil.copytree(dataset_folder, folder)
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    mask.save(folder / "mask.png")
    opened = open_dataset(folder)
    items = [replace(opened.items[0], mask="mask.png", weight=0.5), *opened.items[1:]]
    dataset = replace(opened, items=items, training=TrainingHints(flip=True))
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    cache = Cache(folder.parent / "cache", "base", FAMILY.latents)
    assert fill_latents(cache, dataset, FAMILY, checkpoint, CPU, quiet, never) == 12
    captions = [item.caption for item in items]
    assert fill_prompts(cache, captions, FAMILY, checkpoint, CPU, quiet, never) == len(set(captions))
    # nothing is left to do, so nothing is loaded: None in place of the checkpoint would fail
    nothing: Any = None
    assert fill_latents(cache, dataset, FAMILY, nothing, CPU, quiet, never) == 0
    assert fill_prompts(cache, captions, FAMILY, nothing, CPU, quiet, never) == 0
    return dataset, cache


def test_cached_latents_are_the_scaled_posterior_of_diffusers_vae(filled: tuple[Dataset, Cache], shallow_checkpoint: Path) -> None:
    dataset, cache = filled
    vae: Any = FAMILY.load_vae(open_checkpoint(str(shallow_checkpoint)), torch.float32)
    for item in dataset.items[:2]:
        with Image.open(dataset.path / item.file) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
        scaled = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]  # torchvision's ToTensor and Normalize([0.5], [0.5])
        for flipped, picture in ((False, scaled), (True, scaled.flip(3))):
            with torch.no_grad():
                posterior = vae.encode(picture).latent_dist
            mean, std = cache.latent(item, flipped)
            assert mean.dtype == torch.float32
            torch.testing.assert_close(mean, posterior.mean[0] * 0.18215, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(std, posterior.std[0] * 0.18215, rtol=1e-4, atol=1e-5)


def batch_of(filled: tuple[Dataset, Cache], *positions: int, item: int = 0, epoch: int = 0) -> Any:
    dataset, cache = filled
    slots = [batch_order.Slot(item, position) for position in positions]
    return build_micro_batch(slots, dataset, cache, PLAIN, DIFFUSION, seed=1, epoch=epoch)


def test_latents_are_sampled_from_the_posterior_each_time(filled: tuple[Dataset, Cache]) -> None:
    dataset, cache = filled
    positions = [position for position in range(400) if not derive_seed(1, "flip", 0, position) & 1][:150]
    assert len(positions) == 150  # about half are mirrored
    latents = batch_of(filled, *positions).latents
    mean, std = cache.latent(dataset.items[0])
    errors = ((latents - mean) / std).double()
    # 150 draws of 256 values: their mean and variance as of a standard normal, within five deviations
    count = errors.numel()
    assert abs(float(errors.mean())) < 5 / count**0.5
    assert abs(float(errors.var()) - 1) < 5 * (2 / count) ** 0.5


def test_noise_is_normal_and_timesteps_are_uniform(filled: tuple[Dataset, Cache]) -> None:
    batch = batch_of(filled, *range(600), item=3)
    count = batch.noise.numel()
    assert abs(float(batch.noise.mean())) < 5 / count**0.5
    assert abs(float(batch.noise.var()) - 1) < 5 * (2 / count) ** 0.5
    assert batch.timesteps.dtype == torch.int64
    assert int(batch.timesteps.min()) >= 0 and int(batch.timesteps.max()) <= 999
    assert abs(float(batch.timesteps.double().mean()) - 499.5) < 5 * (1000**2 / 12 / 600) ** 0.5
    assert not torch.allclose(batch.noise, batch.latents)


def test_perturbed_input_has_more_noise_than_the_target(filled: tuple[Dataset, Cache]) -> None:
    """Ning et al. 2023, algorithm 1: the input has noise + gamma times another draw, the target stays the noise."""
    dataset, cache = filled
    slots = [batch_order.Slot(3, position) for position in range(300)]
    fixed: dict[str, Any] = {"seed": 1, "epoch": 0, "process": DIFFUSION}
    plain = build_micro_batch(slots, dataset, cache, PLAIN, **fixed)
    perturbed = build_micro_batch(slots, dataset, cache, ObjectiveSection(input_perturbation=0.1), **fixed)
    assert torch.equal(plain.input_noise, plain.noise)
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(perturbed, name), getattr(plain, name)), name
    extra = (perturbed.input_noise - perturbed.noise).double() / 0.1
    count = extra.numel()
    assert abs(float(extra.mean())) < 5 / count**0.5 and abs(float(extra.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float((extra * plain.noise).mean())) < 5 / count**0.5  # not a part of the noise itself


def test_a_slot_s_draws_are_the_same_in_any_batch(filled: tuple[Dataset, Cache]) -> None:
    together, alone = batch_of(filled, 4, 9), batch_of(filled, 9)
    for name in ("latents", "noise", "timesteps", "weights", "masks"):
        assert torch.equal(getattr(together, name)[1:], getattr(alone, name)), name
    assert not torch.equal(batch_of(filled, 9, epoch=1).noise, alone.noise)


def test_a_mirrored_image_has_a_mirrored_mask(filled: tuple[Dataset, Cache]) -> None:
    for position in range(12):
        batch = batch_of(filled, position)
        mirrored = bool(derive_seed(1, "flip", 0, position) & 1)
        expected = torch.ones(1, 1, 8, 8)
        expected[..., 4:] = 0
        assert torch.equal(batch.masks, expected if mirrored else expected.flip(-1))
        assert batch.weights.tolist() == [0.5]


def test_images_without_a_mask_count_fully_beside_one_with_a_mask(filled: tuple[Dataset, Cache]) -> None:
    dataset, cache = filled
    mixed = build_micro_batch([batch_order.Slot(0, 0), batch_order.Slot(1, 1)], dataset, cache, PLAIN, DIFFUSION, seed=1, epoch=0)
    assert mixed.masks is not None
    assert mixed.masks[0].mean() == 0.5
    assert (mixed.masks[1] == 1).all()
    assert batch_of(filled, 0, item=1).masks is None


def loss_of(predicted: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor, masks: torch.Tensor | None) -> float:
    timesteps = torch.zeros(len(predicted), dtype=torch.int64)
    return float(loss(predicted, wanted, timesteps, weights, masks, PLAIN, DIFFUSION))


def test_the_loss_without_masks_and_weights_is_the_mean_squared_error() -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(3, 4, 5, 6, generator=draw), torch.randn(3, 4, 5, 6, generator=draw)
    assert loss_of(predicted, wanted, torch.ones(3), None) == pytest.approx(float(torch.nn.functional.mse_loss(predicted, wanted)))


def test_masks_and_weights_count_as_written_down_pixel_by_pixel() -> None:
    draw = torch.Generator().manual_seed(1)
    predicted, wanted = torch.randn(2, 4, 3, 3, generator=draw), torch.randn(2, 4, 3, 3, generator=draw)
    masks = torch.rand(2, 1, 3, 3, generator=draw).round(decimals=1)
    weights = torch.tensor([0.25, 2.0])
    total = 0.0
    for image in range(2):
        error = share = 0.0
        for channel in range(4):
            for y in range(3):
                for x in range(3):
                    counts = float(masks[image, 0, y, x])
                    error += counts * float(predicted[image, channel, y, x] - wanted[image, channel, y, x]) ** 2
                    share += counts
        total += float(weights[image]) * error / share
    assert loss_of(predicted, wanted, weights, masks) == pytest.approx(total / 2, rel=1e-5)


def test_what_lies_outside_a_mask_does_not_matter_and_an_empty_mask_is_no_division_by_zero() -> None:
    predicted, wanted = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    masks = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    spoiled = predicted.clone()
    spoiled[..., 1] = 1e6
    assert loss_of(predicted, wanted, torch.ones(1), masks) == loss_of(spoiled, wanted, torch.ones(1), masks) == 1.0
    assert loss_of(predicted, wanted, torch.ones(1), torch.zeros_like(masks)) == 0.0


@pytest.mark.parametrize(("free", "many", "outcome"), [(1e12, 1.0, "nothing"), (1e12, 1e-6, "warned"), (1e4, 1.0, "refused")])
def test_captions_of_many_gigabytes_cause_a_warning_or_a_refusal(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, many: float, outcome: str
) -> None:
    monkeypatch.setattr("trainer.training.caching.prompt_cache.free_bytes", lambda folder: free)
    monkeypatch.setattr("trainer.training.caching.prompt_cache._MANY_GB", many)
    cache, warnings = Cache(tmp_path / "cache", "base", FAMILY.latents), list[str]()
    expectation = pytest.raises(UserError, match="2 different captions") if outcome == "refused" else nullcontext()
    with expectation:
        fill_prompts(cache, ["a", "b"], FAMILY, open_checkpoint(str(shallow_checkpoint)), CPU, quiet, never, warn=warnings.append)
    assert [warning.startswith("The run reads 2 different captions") for warning in warnings] == [True] * (outcome == "warned")
    assert cache.prompt_path("a").is_file() == (outcome != "refused")
