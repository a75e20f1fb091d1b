"""The base as one safetensors file in the original Stable Diffusion (LDM) layout, fp16.

The names are those of CompVis' checkpoints: ``model.diffusion_model.*``, ``first_stage_model.*`` and
``cond_stage_model.transformer.text_model.*``, so that the file goes through the code that reads a user's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from trainer.core.files.writing import atomic_path

from .base_model import TOKENS

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def unet_names(attention: Sequence[bool], layers: int) -> list[tuple[str, str]]:
    """Pairs (diffusers prefix, LDM prefix) of the UNet's blocks; ``attention``: whether each level has attention."""
    levels = len(attention)
    pairs = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
    ]
    for level in range(levels):
        for j in range(layers):
            n = 1 + level * (layers + 1) + j
            pairs.append((f"down_blocks.{level}.resnets.{j}.", f"input_blocks.{n}.0."))
            pairs.append((f"down_blocks.{level}.attentions.{j}.", f"input_blocks.{n}.1."))
        n = (level + 1) * (layers + 1)
        pairs.append((f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{n}.0.op."))
        for j in range(layers + 1):
            n = level * (layers + 1) + j
            pairs.append((f"up_blocks.{level}.resnets.{j}.", f"output_blocks.{n}.0."))
            pairs.append((f"up_blocks.{level}.attentions.{j}.", f"output_blocks.{n}.1."))
        n = level * (layers + 1) + layers
        # A level's upsampler comes after its attention, where it has any.
        place = 2 if attention[levels - 1 - level] else 1
        pairs.append((f"up_blocks.{level}.upsamplers.0.conv.", f"output_blocks.{n}.{place}.conv."))
    return pairs


def unet_to_ldm(weights: Mapping[str, Tensor], attention: Sequence[bool], layers: int) -> dict[str, Tensor]:
    """Rename a diffusers UNet's weights; see :func:`unet_names`."""
    pairs = unet_names(attention, layers)
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        old, new = next(pair for pair in pairs if key.startswith(pair[0]))
        rest = key[len(old) :]
        if ".resnets." in old:
            part, _, kind = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{kind}"
        out[f"model.diffusion_model.{new}{rest}"] = value
    return out


def vae_to_ldm(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename a diffusers autoencoder's weights; attention becomes 1x1 convolutions."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", new)
        if "mid_block.attentions.0." in new:
            part, _, kind = new.split("mid_block.attentions.0.")[1].rpartition(".")
            new = f"{new.split('mid_block')[0]}mid.attn_1.{attention[part]}.{kind}"
            value = value[..., None, None] if value.ndim == 2 else value
        out[f"first_stage_model.{new}"] = value
    return out


def text_to_ldm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a CLIP text model's weights. Newer transformers omit ``text_model.``, the file never does."""
    out = {}
    for key, value in weights.items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        if not name.endswith("position_ids"):
            out[f"cond_stage_model.transformer.{name}"] = value
    return out


def read_base(path: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
    """Load the weights of a file of :func:`write_base` into modules of its widths, in place.

    Raises ``trainer.core.errors.UserError`` for a file that cannot be read and ``RuntimeError`` if the widths differ.
    """
    from trainer.families import family_of, open_checkpoint

    checkpoint = open_checkpoint(str(path))
    family = family_of(checkpoint)
    vae.load_state_dict(family.load_vae(checkpoint, torch.float32).state_dict())
    unet.load_state_dict(family.load_denoiser(checkpoint, torch.float32).state_dict())
    encoder: Any = family.load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
    text.load_state_dict(encoder.model.state_dict())


def write_base(path: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, metadata: Mapping[str, str]) -> None:
    """Write the three parts as one fp16 file. Raises ``ValueError`` on a non-finite weight."""
    tensors: dict[str, Tensor] = {}
    attention = [kind.startswith("CrossAttn") for kind in unet.config["down_block_types"]]
    tensors |= unet_to_ldm(unet.state_dict(), attention, unet.config["layers_per_block"])
    tensors |= vae_to_ldm(vae.state_dict(), len(vae.config["block_out_channels"]))
    tensors |= text_to_ldm(text.state_dict())
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} is not finite in fp16; the training diverged, train again with a smaller rate")
    position_ids = torch.arange(TOKENS, dtype=torch.int64)[None]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = position_ids
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))
