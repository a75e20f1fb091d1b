"""``python -m trainer sample`` reproduces the validation images of a run, and its strength means the same as in ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.unit.training_helpers import configuration, make_dataset, make_pictures, train_here
from trainer.cli import main
from trainer.commands.sampling_settings import choose_sampling_settings
from trainer.families import Prediction, family_named, open_checkpoint
from trainer.runs.events import Sample
from trainer.training.monitoring.latent_sampling import noise_for

LONG = "myStyle (girl:1.3), " + ", ".join(f"tag number {number}" for number in range(20))
FLAGS = " --w 64 --h 64 --d 5 --s 3 --l 6 --n blurry"


def pixels(path: Path) -> npt.NDArray[np.int_]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def trained(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LoRA trained with another prediction type, clip skip and longer prompts, and the last validation image of its run."""
    root = tmp_path_factory.mktemp("trained")
    changes = {
        "objective.prediction": "v-prediction", "training.clip_skip": 2, "training.max_tokens": 150, "training.max_steps": 3,
        "network.text_encoder": True, "optimizer.lr": 0.02, "sample.prompts": [LONG + FLAGS], "sample.every_epochs": 1,
    }  # fmt: skip
    result = train_here(configuration(shallow_checkpoint, make_dataset(root, 4), root / "runs", changes))
    assert result.status == 0, result.told[-1]
    images = [event.path for event in result.told if isinstance(event, Sample)]
    return result.run.lora, Path(images[-1])


def sample(base: Path, lora: Path, out: Path, *more: str) -> npt.NDArray[np.int_]:
    assert main(["sample", "--base", str(base), "--lora", str(lora), "--prompt", LONG + FLAGS, "--out", str(out), *more]) == 0
    return pixels(next(out.glob("*.png")))


@pytest.mark.seconds
def test_sample_reproduces_the_validation_image_of_the_run(
    trained: tuple[Path, Path], shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, last = trained
    made = sample(shallow_checkpoint, lora, tmp_path / "as trained")
    progress = capsys.readouterr().err
    assert f"loading {shallow_checkpoint.name}" in progress and "clip skip 2" in progress and "v-prediction" in progress
    own = pixels(last)
    assert np.abs(made - own).mean() < 2  # the file holds the LoRA in fp16
    for number, more in enumerate((["--clip-skip", "0"], ["--prediction", "epsilon"])):
        assert np.abs(sample(shallow_checkpoint, lora, tmp_path / f"{number}", *more) - own).mean() > 4, more


def test_the_prediction_type_of_the_checkpoint_overrides_that_of_the_lora(shallow_checkpoint: Path, tmp_path: Path) -> None:
    family, plain = family_named("sd1"), open_checkpoint(str(shallow_checkpoint))
    save_file({**load_file(shallow_checkpoint), "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, tmp_path / "v.safetensors")
    marked = open_checkpoint(str(tmp_path / "v.safetensors"))
    lora: Any = (Path("x.safetensors"), {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True", "ss_max_token_length": "225"})
    other: Any = (Path("y.safetensors"), {"modelspec.prediction_type": "epsilon", "ss_clip_skip": "2"})
    assert choose_sampling_settings(family, plain, [lora]).prediction == Prediction("v_prediction", True)
    believed = choose_sampling_settings(family, marked, [other])
    assert believed.prediction == Prediction("v_prediction", True)
    assert any("y.safetensors was trained for epsilon" in remark for remark in believed.remarks)
    assert choose_sampling_settings(family, marked, [lora], prediction="epsilon").prediction == Prediction()
    both = choose_sampling_settings(family, plain, [lora, other]).text
    assert (both.clip_skip, both.max_tokens) == (2, 225)
    assert choose_sampling_settings(family, plain, [other], clip_skip=0).text.clip_skip == 0
    # some trainers also write a clip skip for SDXL, which always uses its own
    assert choose_sampling_settings(family_named("sdxl"), plain, [(Path("z"), {"ss_clip_skip": "1"})]).remarks == ()


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.3), (20, 0.5), (20, 0.65), (7, 0.9), (4, 1.0)])
def test_strength_means_the_same_as_denoise_in_comfyui(steps: int, strength: float) -> None:
    """KSampler: of int(steps / denoise) noise levels of Karras et al. (rho 7) between the model's ends, the last ``steps`` and zero."""
    scheduler = family_named("sd1").sampling_scheduler(karras=True)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    products = np.cumprod(1 - betas)
    low, high = (((1 - products[at]) / products[at]) ** 0.5 for at in (0, -1))
    ramp = np.linspace(0, 1, int(steps / strength))
    levels = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    start, noise = torch.full((1, 4, 2, 2), 0.7), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noisy = noise_for(scheduler, start, noise, steps, strength)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), np.append(levels[-steps:], 0), rtol=1e-3)
    first = levels[-steps]
    np.testing.assert_allclose(noisy.numpy(), (start + first * noise).numpy() / (1 + first**2) ** 0.5, rtol=1e-3, atol=1e-3)
    assert len(scheduler.timesteps) == steps


@pytest.mark.seconds
def test_low_strength_keeps_the_image_and_high_strength_replaces_it(shallow_checkpoint: Path, tmp_path: Path) -> None:
    photo = make_pictures(tmp_path / "in", 1, size=(70, 67)) / "00.png"
    arguments = ["sample", "--base", str(shallow_checkpoint), "--prompt", "a cat", "--steps", "4", "--image", str(photo)]
    apart = []
    for strength in ("0.05", "1"):
        out = tmp_path / strength
        assert main([*arguments, "--strength", strength, "--out", str(out)]) == 0
        made = pixels(next(out.glob("*.png")))
        assert made.shape == (64, 64, 3)
        apart.append(made)
    encoded = tmp_path / "0.001"  # almost no noise: the image as the VAE reproduces it
    assert main([*arguments, "--strength", "0.001", "--out", str(encoded)]) == 0
    same = pixels(next(encoded.glob("*.png")))
    assert np.abs(apart[0] - same).mean() < np.abs(apart[1] - same).mean() / 2
