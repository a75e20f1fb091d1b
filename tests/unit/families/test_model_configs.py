"""Configurations derived from tensor shapes match the published ones of Stable Diffusion 1.5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from random_checkpoints.layout import FULL, tensors
from tests.unit.families.plain_models import full_config
from trainer.core.errors import UserError
from trainer.families.sd1 import FAMILY
from trainer.families.stable_diffusion import ldm_configs
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.objective.diffusion import Diffusion

SHAPES = {tensor.name: tensor.shape for tensor in tensors(FULL)}

# unet/config.json, vae/config.json and text_encoder/config.json of stable-diffusion-v1-5, less the entries that name files and versions
UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}


def test_unet_config_matches_published_one() -> None:
    assert full_config(UNet2DConditionModel, ldm_configs.unet_config(SHAPES, heads=8)) == full_config(UNet2DConditionModel, UNET)


def test_vae_config_matches_published_one() -> None:
    ours = ldm_configs.vae_config(SHAPES, scaling_factor=FAMILY.latents.scaling_factor)
    assert full_config(AutoencoderKL, ours) == full_config(AutoencoderKL, VAE)  # diffusers' default scaling factor is SD 1.5's


def test_text_encoder_config_matches_published_one() -> None:
    ours = ldm_configs.clip_config(SHAPES, prefix="cond_stage_model.transformer.text_model.", head_dim=64, activation="quick_gelu")
    ignored = {"bos_token_id", "eos_token_id", "pad_token_id"}  # the published ones do not match its tokenizer
    made, published = CLIPTextConfig(**ours).to_dict(), CLIPTextConfig(**TEXT).to_dict()
    assert {key: made[key] for key in made if key not in ignored} == {key: published[key] for key in published if key not in ignored}


def test_noise_schedule_matches_published_one() -> None:
    # scheduler_config.json of stable-diffusion-v1-5: scaled_linear is linear in the square root of beta
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    for scheduler in (Diffusion(SCHEDULE).scheduler, FAMILY.sampling_scheduler()):
        assert torch.allclose(scheduler.betas.double(), betas, rtol=1e-5)
        assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("width", [32, 96, 192])
def test_config_of_other_widths_follows_from_shapes(width: int) -> None:
    from dataclasses import replace

    size = replace(FULL, unet=(width, width, 2 * width, 2 * width), text_width=128, text_layers=3)
    shapes = {tensor.name: tensor.shape for tensor in tensors(size)}
    assert ldm_configs.unet_config(shapes, heads=8)["block_out_channels"] == [width, width, 2 * width, 2 * width]
    assert ldm_configs.unet_config(shapes, heads=8)["cross_attention_dim"] == 128
    text = ldm_configs.clip_config(shapes, prefix="cond_stage_model.transformer.text_model.", head_dim=64, activation="quick_gelu")
    assert (text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]) == (128, 3, 2)


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_missing_part_is_named(part: str) -> None:
    rest = {name: shape for name, shape in SHAPES.items() if not name.startswith(part)}
    word = {"model.diffusion_model.": "UNet", "first_stage_model.": "VAE", "cond_stage_model.": "text encoder"}[part]
    with pytest.raises(UserError, match=word) as caught:
        ldm_configs.unet_config(rest, heads=8)
        ldm_configs.vae_config(rest, scaling_factor=1)
        ldm_configs.clip_config(rest, prefix="cond_stage_model.transformer.text_model.", head_dim=64, activation="quick_gelu")
    assert caught.value.kind == "checkpoint"
