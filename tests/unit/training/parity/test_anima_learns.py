"""A LoRA on a small model of Anima's architecture learns a drawing style that the model has never seen.

A second LoRA, trained in the same way on pencil drawings of the same portraits, is the control. Measured on 24 portraits that neither
base nor LoRA has seen, with two seeds of training and noise, and with the first on a base of 400 steps:

| | seed 0 | seed 1 | another base |
| --- | --- | --- | --- |
| loss on anime portraits: base, LoRA, control | 1.46, 1.24, 1.86 | 1.46, 1.25, 1.78 | 1.51, 1.26, not measured |
| average image from the average anime drawing, x 1000: base, LoRA, control | 9.6, 7.8, 38 | 12.0, 9.5, 34 | 11.0, 8.4, not measured |
| images from drawings of their captions, x 1000: base, LoRA, control | 35, 35, 60 | 36, 33, 53 | 34, 31, not measured |

Image by image the LoRA is hardly nearer than the base: a model that is trained for minutes draws rough images, in which a caption
decides little. The style shows in what the images have in common. All of it takes about five minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from demo.drawing.portraits import caption, random_portrait
from demo.drawing.render import render
from tests.unit.training.parity.small_anima import CPU, SIDE, SmallAnima, portrait_pixels, train_small_anima, use_autoencoder
from tests.unit.training_helpers import configuration, train_here
from trainer.adapters import adapter
from trainer.adapters.start_from import load_lora
from trainer.config.sections.network import NetworkSection
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.families import open_checkpoint
from trainer.families.anima.anima_family import FAMILY
from trainer.families.anima.text import padded
from trainer.runs.event_log import read_samples
from trainer.runs.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.long]

TRAINED_ON = range(10_000, 10_096)  # numbers of portraits; the base has seen other ones
VALIDATED_ON = range(20_000, 20_024)  # seen by neither base nor LoRA
TRIGGER, CLASS = "demoStyle", "portrait"
NETWORK = NetworkSection(rank=16, alpha=16.0)
EPOCHS = 25
LEVELS = (0.2, 0.4, 0.6, 0.8)
Images = npt.NDArray[np.float32]  # (images, 32, 32, 3) in 0..1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallAnima]:
    """The small model, trained on the three styles that are not held out."""
    trained = train_small_anima(tmp_path_factory.mktemp("base"))
    with pytest.MonkeyPatch.context() as patch:
        use_autoencoder(patch, trained.vae)
        yield trained


@pytest.fixture(scope="module")
def anime(base: SmallAnima, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of a LoRA that was trained on portraits in the held-out style."""
    return train_lora(base, "anime", tmp_path_factory.mktemp("anime"))


@pytest.fixture(scope="module")
def control(base: SmallAnima, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of a LoRA that was trained in the same way on pencil drawings of the same portraits."""
    return train_lora(base, "pencil", tmp_path_factory.mktemp("pencil"))


def prompt_of(number: int) -> str:
    """The caption of a portrait in a prepared dataset: it does not name the style."""
    return f"{TRIGGER} {CLASS}, {caption(random_portrait(number), None)}"


def train_lora(base: SmallAnima, style: str, folder: Path) -> RunFolder:
    """A LoRA trained on the portraits of ``TRAINED_ON`` in a style, with images of those of ``VALIDATED_ON`` before and after."""
    source = folder / "images"
    source.mkdir()
    for number in TRAINED_ON:
        render(random_portrait(number), style, SIDE).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(caption(random_portrait(number), None), encoding="utf-8")
    clean = {"min_side": SIDE, "near_duplicates": False}  # portraits are alike
    prepared = {"trigger": TRIGGER, "class_description": CLASS, "resolution": SIDE, "clean": clean}
    dataset = prepare_dataset(source, folder / "datasets", PrepareSettings.model_validate(prepared)).dataset.path
    settings: dict[str, Any] = {
        "network.rank": NETWORK.rank,
        "network.alpha": NETWORK.alpha,
        "optimizer.lr": 2e-3,
        "objective.timestep_sampling": "logit-normal",
        "training.batch_size": 8,
        "training.gradient_accumulation": 1,
        "training.epochs": EPOCHS,
        "sample.prompts": [prompt_of(number) for number in VALIDATED_ON],
        "sample.every_epochs": EPOCHS,
        "sample.width": SIDE,
        "sample.height": SIDE,
        "sample.guidance": 1.0,
        "sample.steps": 20,
    }
    trained = train_here(configuration(base.path, dataset, folder / "runs", settings))
    assert trained.status == 0
    return trained.run


def validation_loss(base: SmallAnima, lora: Path | None, style: str) -> float:
    """The mean squared error of the velocity at fixed noise levels and noises, for portraits of ``VALIDATED_ON`` in a style."""
    checkpoint = open_checkpoint(str(base.path))
    denoiser: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    if lora is not None:
        adapter.adapt(denoiser, FAMILY.denoiser_targets(denoiser, "all-linear"), NETWORK, 0)
        load_lora(denoiser, lora)
    text = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU)
    rows = [row["embeds"] for row in text.encode([prompt_of(number) for number in VALIDATED_ON])]
    latents = base.vae.encode(torch.stack([portrait_pixels(number, style) for number in VALIDATED_ON]))
    draw, errors = torch.Generator().manual_seed(1), []
    for level in LEVELS:
        noise = torch.randn(latents.shape, generator=draw)
        noisy = (1 - level) * latents + level * noise
        with torch.no_grad():
            predicted = denoiser(noisy, torch.tensor(level), padded(rows, CPU, torch.float32))[0]
        errors.append(float(F.mse_loss(predicted, noise - latents)))
    return float(np.mean(errors))


def images_of(run: RunFolder) -> tuple[Images, Images]:
    """The images of ``VALIDATED_ON`` that the base made, and those of the LoRA."""
    by_epoch: dict[int, list[Images]] = {}
    for sample in read_samples(run.events):
        with Image.open(sample.path) as image:
            by_epoch.setdefault(sample.epoch, []).append(_values(image))
    return np.stack(by_epoch[min(by_epoch)]), np.stack(by_epoch[max(by_epoch)])


def distance(images: Images, style: str) -> float:
    """The mean squared difference, at 4 x 4 pixels, between images and drawings of the same captions in a style: colours and light."""
    drawings = _drawings(style)
    return float(np.square(_coarse(images) - _coarse(drawings)).mean())


def distance_of_averages(images: Images, style: str) -> float:
    """The mean squared difference between the average image and the average drawing in a style: what differs between people is gone."""
    return float(np.square(images.mean(0) - _drawings(style).mean(0)).mean())


def _drawings(style: str) -> Images:
    return np.stack([_values(render(random_portrait(number), style, SIDE)) for number in VALIDATED_ON])


def _values(image: Image.Image) -> Images:
    """(32, 32, 3) in 0..1."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)


def _coarse(images: Images) -> Images:
    """(images, 4, 4, 3): the means of squares of 8 x 8 pixels."""
    means: Images = images.reshape(len(images), SIDE // 8, 8, SIDE // 8, 8, 3).mean((2, 4))
    return means


def test_base_learns_to_draw_from_nothing(base: SmallAnima) -> None:
    assert 1.9 < base.losses[0] < 2.1  # it predicts zero, and the target's variance is 2
    assert np.mean(base.losses[-100:]) < 0.5 * base.losses[0]


def test_lora_lowers_the_loss_on_unseen_portraits_of_its_style(base: SmallAnima, anime: RunFolder, control: RunFolder) -> None:
    without = validation_loss(base, None, "anime")
    assert validation_loss(base, anime.lora, "anime") < 0.92 * without
    assert validation_loss(base, control.lora, "anime") > without


def test_images_take_on_the_style_of_the_lora(anime: RunFolder, control: RunFolder) -> None:
    (without, with_lora), (_, with_control) = images_of(anime), images_of(control)
    average = distance_of_averages(with_lora, "anime")
    assert average < 0.9 * distance_of_averages(without, "anime")
    assert average < 0.5 * distance_of_averages(with_control, "anime")
    assert distance(with_lora, "anime") < 0.8 * distance(with_control, "anime")
