"""Model configurations read from the tensor shapes of an original-layout (LDM) checkpoint.

A single file comes without a configuration. Widths follow from the shapes, so the same code reads full-size checkpoints and small ones of
the same architecture. The number of attention heads does not show in the shapes; the family states it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...core.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_HEAD_CHANNELS = 64  # of SD 2.x and SDXL
_TIME_WIDTH = 256  # of the sinusoidal embedding of each of SDXL's six sizes


def has_unet(shapes: Shapes) -> bool:
    """Whether there is a UNet that takes latents of four channels. (An inpainting UNet takes nine.)"""
    return shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 0))[1:2] == (4,)


def has_plain_unet(shapes: Shapes) -> bool:
    """Whether there is such a UNet without SDXL's size embedding."""
    return has_unet(shapes) and f"{UNET}label_emb.0.0.weight" not in shapes


def unet_config(shapes: Shapes, *, heads: int | None) -> dict[str, Any]:
    """Configuration of ``diffusers.UNet2DConditionModel`` for the UNet below ``model.diffusion_model.``.

    ``heads`` is the number of attention heads of every level (SD 1.x: 8); None: 64 channels a head (SD 2.x, SDXL). Raises UserError
    when there is no UNet.
    """
    stem = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if stem is None:
        raise UserError(
            "The file holds no Stable Diffusion UNet (model.diffusion_model.input_blocks is missing).",
            "Choose a full checkpoint, not a LoRA, a VAE or a file with only a UNet.",
            kind="checkpoint",
        )
    channels: list[int] = []
    blocks: list[int] = []
    depths: list[int] = []  # transformer blocks of each level
    last = max(int(m[1]) for key in shapes if (m := re.match(rf"{re.escape(UNET)}input_blocks\.(\d+)\.", key)))
    new_level = True
    for index in range(1, last + 1):
        prefix = f"{UNET}input_blocks.{index}."
        if f"{prefix}0.op.weight" in shapes:
            new_level = True
            continue
        out = shapes[f"{prefix}0.out_layers.3.weight"][0]
        if new_level:
            channels.append(out)
            blocks.append(0)
            depths.append(_depth(shapes, f"{prefix}1."))
            new_level = False
        blocks[-1] += 1
    context = next(shape[1] for key, shape in shapes.items() if key.startswith(UNET) and key.endswith("attn2.to_k.weight"))
    proj_in = next(shape for key, shape in shapes.items() if key.startswith(UNET) and key.endswith(".proj_in.weight"))
    if len(set(blocks)) != 1:
        raise UserError(
            f"The UNet has an unusual layout (blocks per level {blocks}).", "Use a Stable Diffusion checkpoint.", kind="checkpoint"
        )
    attention = [depth > 0 for depth in depths]
    layers = [max(depth, 1) for depth in depths]
    sized: dict[str, Any] = {}
    if (label := shapes.get(f"{UNET}label_emb.0.0.weight")) is not None:
        sized = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_WIDTH,
            "projection_class_embeddings_input_dim": label[1],
        }
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128 if sized else 64,
        "in_channels": stem[1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": blocks[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "cross_attention_dim": context,
        # diffusers' historic name: this is the number of heads
        "attention_head_dim": heads or [width // _HEAD_CHANNELS or 1 for width in channels],
        "use_linear_projection": len(proj_in) == 2,
        "transformer_layers_per_block": layers if max(layers) > 1 else 1,
        **sized,
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
    }


def _depth(shapes: Shapes, prefix: str) -> int:
    """Transformer blocks of the attention at ``prefix``; 0 when there is none."""
    blocks = {int(m[1]) for key in shapes if (m := re.match(rf"{re.escape(prefix)}transformer_blocks\.(\d+)\.", key))}
    return max(blocks) + 1 if blocks else 0


def vae_config(shapes: Shapes, *, scaling_factor: float) -> dict[str, Any]:
    """Configuration of ``diffusers.AutoencoderKL`` for the VAE below ``first_stage_model.``."""
    pattern = re.compile(rf"{re.escape(VAE)}encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")
    found = [(int(m[1]), int(m[2]), shape[0]) for key, shape in shapes.items() if (m := pattern.match(key))]
    if not found:
        raise UserError(
            "The checkpoint holds no VAE (first_stage_model is missing).",
            "Choose a full checkpoint that includes its VAE.",
            kind="checkpoint",
        )
    levels = max(level for level, _, _ in found) + 1
    widths = {level: width for level, _, width in found}
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": shapes[f"{VAE}post_quant_conv.weight"][0],
        "block_out_channels": [widths[level] for level in range(levels)],
        "layers_per_block": max(block for _, block, _ in found) + 1,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": scaling_factor,
    }


def clip_config(shapes: Shapes, *, prefix: str, head_dim: int, activation: str) -> dict[str, Any]:
    """Configuration of ``transformers.CLIPTextModel`` for the text encoder below ``prefix``."""
    table = shapes.get(f"{prefix}embeddings.token_embedding.weight")
    if table is None:
        raise UserError(
            "The checkpoint holds no CLIP text encoder.", "Choose a full checkpoint that includes its text encoder.", kind="checkpoint"
        )
    layers = {int(m[1]) for key in shapes if (m := re.match(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.", key))}
    return {
        "vocab_size": table[0],
        "hidden_size": table[1],
        "intermediate_size": shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": table[1] // head_dim,
        "max_position_embeddings": shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        "hidden_act": activation,
        "layer_norm_eps": 1e-05,
        "projection_dim": table[1],
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
