"""The base's architecture: Stable Diffusion 1.x at small widths, as diffusers and transformers modules.

Every rule of SD 1.x that a loader relies on is kept: 8 attention heads, convolutional ``proj_in``/``proj_out``,
GroupNorm with 32 groups, no attention in the last level, CLIP's tokenizer and 77 positions with heads of 64,
and a four-channel autoencoder of factor 8. Only the widths and depths differ, and that the first level, which
takes most of a CPU's time with its many positions, can go without attention, as in SDXL.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

LATENT_SCALE = 0.18215
"""SD 1.x's constant: latents times this have unit variance."""
TOKENS = 77
SIZE = 256
"""Pixels of the sides of the pictures that the base is trained on."""
END_TOKEN = 49407


@dataclass(frozen=True)
class Widths:
    """Channels and depths of the three parts."""

    vae: tuple[int, ...] = (64, 64, 128, 128)
    vae_layers: int = 1
    unet: tuple[int, ...] = (64, 128, 192)
    unet_attention: tuple[bool, ...] = (False, True, False)
    """Which of the UNet's levels have attention; the bottom block always has."""
    unet_layers: int = 1
    text: int = 128
    text_layers: int = 3


def build_vae(widths: Widths) -> AutoencoderKL:
    """The autoencoder: (n, 3, h, w) in -1..1 to latents (n, 4, h/8, w/8)."""
    levels = len(widths.vae)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths.vae,
        layers_per_block=widths.vae_layers,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=SIZE,
        scaling_factor=LATENT_SCALE,
    )


def build_unet(widths: Widths) -> UNet2DConditionModel:
    """The denoiser: predicts the noise in (n, 4, h, w), conditioned on (n, 77, text width)."""
    attention = widths.unet_attention
    if len(attention) != len(widths.unet):
        raise ValueError(f"unet_attention {attention} does not name each of the levels {widths.unet}")
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        block_out_channels=widths.unet,
        layers_per_block=widths.unet_layers,
        cross_attention_dim=widths.text,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def build_text_encoder(widths: Widths) -> CLIPTextModel:
    """CLIP's text model: token ids (n, 77) to (n, 77, text width)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=widths.text,
            intermediate_size=widths.text * 4,
            num_hidden_layers=widths.text_layers,
            num_attention_heads=max(1, widths.text // 64),
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
            projection_dim=widths.text,
            bos_token_id=49406,
            eos_token_id=END_TOKEN,
            pad_token_id=END_TOKEN,
        )
    )
