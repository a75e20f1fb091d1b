"""What a denoiser predicts is read from its checkpoint, overridden by settings, and sampled accordingly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.families.helpers import with_tensors
from trainer.config.sections.objective import ObjectiveSection
from trainer.core.errors import UserError
from trainer.families import BaseCheckpoint, Prediction, family_named, family_of, open_checkpoint
from trainer.families.sdxl import StableDiffusionXL
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.objective.choose import choose_prediction
from trainer.objective.diffusion import Diffusion


def test_prediction_is_read_from_markers_metadata_and_configuration(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source, family = tiny_checkpoints["sdxl"], family_named("sdxl")

    def prediction(path: Path) -> Prediction:
        checkpoint = open_checkpoint(str(path))
        assert family_of(checkpoint) is family
        return family.prediction(checkpoint)

    assert prediction(source) == Prediction("epsilon")
    marker = {"v_pred": torch.zeros(1)}
    assert prediction(with_tensors(source, tmp_path / "v.safetensors", marker)) == Prediction("v_prediction")
    both = with_tensors(source, tmp_path / "z.safetensors", {**marker, "ztsnr": torch.zeros(1)})
    assert prediction(both) == Prediction("v_prediction", True)
    assert prediction(with_tensors(source, tmp_path / "m.safetensors", {}, {"modelspec.prediction_type": "v"})) == Prediction(
        "v_prediction"
    )
    family.pipeline(open_checkpoint(str(both)), dtype=torch.float32).save_pretrained(tmp_path / "folder")
    assert prediction(tmp_path / "folder") == Prediction("v_prediction", True)


def test_sd2_v_prediction_is_recognised_by_the_spread_of_one_bias(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    family = family_named("sd2")
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    assert family.prediction(open_checkpoint(str(tiny_checkpoints["sd2"]))).kind == "epsilon"
    wide = {name: torch.linspace(-0.5, 0.5, 64)}
    path = with_tensors(tiny_checkpoints["sd2"], tmp_path / "v.safetensors", wide)
    assert family.prediction(open_checkpoint(str(path))).kind == "v_prediction"
    stated = with_tensors(tiny_checkpoints["sd2"], tmp_path / "e.safetensors", wide, {"modelspec.prediction_type": "epsilon"})
    assert family.prediction(open_checkpoint(str(stated))).kind == "epsilon"


class FamilyStating(StableDiffusionXL):
    """SDXL whose checkpoints state one prediction."""

    def __init__(self, stated: Prediction) -> None:
        self.stated = stated

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        return self.stated


def test_objective_settings_override_the_stated_prediction() -> None:
    noobai = Prediction("v_prediction", True)

    def chosen(stated: Prediction, **settings: Any) -> Prediction:
        family = FamilyStating(stated)
        return choose_prediction(family, BaseCheckpoint(Path("x.safetensors"), "file"), ObjectiveSection(**settings))

    assert chosen(noobai) == noobai
    assert chosen(noobai, prediction="epsilon") == Prediction("epsilon")
    assert chosen(noobai, zero_terminal_snr="off") == Prediction("v_prediction")
    assert chosen(Prediction(), prediction="v-prediction", zero_terminal_snr="on") == noobai
    with pytest.raises(UserError, match="pure noise"):
        chosen(Prediction(), zero_terminal_snr="on")


def test_zero_terminal_snr_samples_from_the_last_timestep() -> None:
    sampler = family_named("sdxl").sampling_scheduler(Prediction("v_prediction", True))
    sampler.set_timesteps(10)
    assert int(sampler.timesteps[0]) == 999
    noise = Diffusion(SCHEDULE, Prediction("v_prediction", True)).scheduler
    assert float(noise.alphas_cumprod[-1]) < 1e-7


def test_zero_terminal_snr_rescales_as_in_the_paper() -> None:
    """Lin et al. 2023, algorithm 1, in plain floats: shift the roots of the products so that the last is zero, then rescale the first."""
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    roots, product = [], 1.0
    for index in range(1000):
        product *= 1 - (first + (last - first) * index / 999) ** 2
        roots.append(math.sqrt(product))
    scale = roots[0] / (roots[0] - roots[-1])
    expected = [((root - roots[-1]) * scale) ** 2 for root in roots]
    scheduler = Diffusion(SCHEDULE, Prediction("v_prediction", True)).scheduler
    # diffusers computes in fp32: its products carry a rounding of about 1e-6
    assert scheduler.alphas_cumprod.tolist() == pytest.approx(expected, abs=3e-6)
    assert scheduler.alphas_cumprod.tolist() != pytest.approx([root**2 for root in roots], abs=1e-3)
