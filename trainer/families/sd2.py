"""Stable Diffusion 2.x: context width 1024, one OpenCLIP ViT-H text encoder, epsilon (512 base) or v-prediction (768)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import clip, ldm
from .base import PLAIN_TEXT, Prediction, TextSettings
from .checkpoint import BaseCheckpoint
from .markers import read_json, states_prediction
from .sd1 import StableDiffusion1
from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch

_TEXT_PREFIX = "cond_stage_model.model."
_TELLTALE = f"{ldm.UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLTALE_LIMIT = 0.09  # its spread is larger in v-prediction models; ComfyUI decides by the same rule


class StableDiffusion2(StableDiffusion1):
    """The family's one instance is ``trainer.families.sd2.FAMILY``."""

    name = "sd2"
    title = "Stable Diffusion 2.x"
    heads = None

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """An LDM UNet with linear projections and one OpenCLIP text model."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            plain = config.get("in_channels", 4) == 4 and config.get("addition_embed_type") is None
            return plain and bool(config.get("use_linear_projection")) and (checkpoint.path / "text_encoder").is_dir()
        shapes = checkpoint.shapes
        if not ldm.has_plain_unet(shapes):
            return False
        has_text = f"{_TEXT_PREFIX}token_embedding.weight" in shapes
        return has_text and bool(ldm.unet_config(shapes, heads=None)["use_linear_projection"])

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the file says; else, as files of this family say nothing, by the spread of one bias vector."""
        stated = super().prediction(checkpoint)
        if checkpoint.kind == "folder" or states_prediction(checkpoint) or _TELLTALE not in checkpoint.shapes:
            return stated
        bias = checkpoint.tensors(lambda key: key == _TELLTALE)[_TELLTALE]
        velocity = float(bias.float().std(unbiased=False)) > _TELLTALE_LIMIT
        return Prediction("v_prediction" if velocity else "epsilon", stated.zero_terminal_snr)

    def text_settings(self, max_tokens: int, clip_skip: int) -> TextSettings:
        """As SDXL, and unlike SD 1.x: one layer."""
        return StableDiffusion.text_settings(self, max_tokens, clip_skip)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> clip.ClipText:
        """OpenCLIP ViT-H's text model up to its last but one layer."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            model = clip.load_folder(CLIPTextModel, checkpoint, "text_encoder", dtype)
        else:
            model = clip.load_open_clip(checkpoint, _TEXT_PREFIX, family="SD 2.x", projection=False)
        return clip.ClipText(clip.zero_padded(clip.tokenizer(checkpoint)), model.to(device=device, dtype=dtype), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> clip.ClipText:
        """The text model on the ``meta`` device, without a tokenizer."""
        if checkpoint.kind == "folder":
            return super().empty_text_encoder(checkpoint, settings)
        return clip.ClipText(None, clip.empty_open_clip(checkpoint, _TEXT_PREFIX, family="SD 2.x", projection=False), settings)


FAMILY = StableDiffusion2()
