"""The random checkpoint that other tests stand on is a real Stable Diffusion 1.5 in everything but its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from random_checkpoints.layout import FULL, tensors
from random_checkpoints.make_checkpoint import make_checkpoint

# Stable Diffusion 1.5's published configurations, as far as they differ from the libraries' defaults
UNET = {
    "sample_size": 64,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768}


def _meta(prefix: str) -> dict[str, torch.Tensor]:
    return {t.name: torch.empty(t.shape, device="meta") for t in tensors(FULL) if t.name.startswith(prefix)}


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def test_the_full_size_has_the_keys_of_the_original_file() -> None:
    assert len(tensors(FULL)) == 1131
    assert len({t.name for t in tensors(FULL)}) == 1131


def test_diffusers_maps_the_unet_and_vae_names_one_to_one() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNET)
        vae = AutoencoderKL.from_config(VAE)
    mapped = convert_ldm_unet_checkpoint(_meta("model.diffusion_model."), unet.config)
    assert _shapes(mapped) == _shapes(unet.state_dict())
    mapped = convert_ldm_vae_checkpoint(_meta("first_stage_model."), vae.config)
    # the attention of the original VAE is made of 1x1 convolutions, that of diffusers of linear layers
    flat = {name: shape[:2] if "attentions" in name else shape for name, shape in _shapes(mapped).items()}
    assert flat == _shapes(vae.state_dict())


def test_the_text_encoder_has_clips_names_and_shapes() -> None:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**CLIP))
    ours = {name.removeprefix("cond_stage_model.transformer.text_model."): t for name, t in _meta("cond_stage_model.").items()}
    ours.pop("embeddings.position_ids")
    assert _shapes(ours) == {name.removeprefix("text_model."): tuple(t.shape) for name, t in model.state_dict().items()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again, other = (make_checkpoint(tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert first == again
    assert first != other


def test_the_file_reads_as_fp16_with_weights_of_the_intended_scale(tiny_checkpoint: Path) -> None:
    with safe_open(str(tiny_checkpoint), "np") as file:
        names = list(file.keys())
        weight = file.get_tensor("model.diffusion_model.middle_block.0.in_layers.2.weight")
        norm = file.get_tensor("first_stage_model.decoder.norm_out.weight")
    assert len(names) == len(set(names))
    assert weight.dtype == np.float16
    assert weight.std() == pytest.approx((64 * 9) ** -0.5, rel=0.05)  # one over the square root of the inputs
    assert (norm == 1).all()


def test_activations_stay_near_unit_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = UNET | {"cross_attention_dim": 64, "block_out_channels": [32, 32, 64, 64], "_class_name": "UNet2DConditionModel"}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    unet = UNet2DConditionModel.from_single_file(str(tiny_checkpoint), config=str(tmp_path), subfolder="unet", local_files_only=True)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 77, 64, generator=generator)
    with torch.no_grad():
        noise = unet(latents, 500, context).sample
    assert torch.isfinite(noise).all()
    assert 0.1 < noise.std() < 3
