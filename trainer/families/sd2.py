"""Stable Diffusion 2.x: context width 1024, one OpenCLIP ViT-H text encoder, epsilon (512 base) or v-prediction (768)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .checkpoints.base_checkpoint import BaseCheckpoint
from .checkpoints.diffusers_folder import read_json
from .interface import PLAIN_TEXT, TextSettings
from .prediction import Prediction
from .stable_diffusion import clip_text, clip_weights, ldm_configs
from .stable_diffusion.family import StableDiffusion

if TYPE_CHECKING:
    import torch

_TEXT_PREFIX = "cond_stage_model.model."
# The spread of this bias is larger in v-prediction models. ComfyUI decides by the same rule.
_VELOCITY_BIAS = f"{ldm_configs.UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_VELOCITY_SPREAD = 0.09


class StableDiffusion2(StableDiffusion):
    """The family SD 2.x."""

    name = "sd2"
    title = "Stable Diffusion 2.x"

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A UNet with linear projections, and one OpenCLIP text model."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            plain = config.get("in_channels", 4) == 4 and config.get("addition_embed_type") is None
            return plain and bool(config.get("use_linear_projection")) and (checkpoint.path / "text_encoder").is_dir()
        shapes = checkpoint.shapes
        if not ldm_configs.has_plain_unet(shapes):
            return False
        has_text = f"{_TEXT_PREFIX}token_embedding.weight" in shapes
        return has_text and bool(ldm_configs.unet_config(shapes, heads=None)["use_linear_projection"])

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the file states. Single files of this family usually state nothing; then the spread of one bias vector decides."""
        stated = super().prediction(checkpoint)
        if checkpoint.kind == "folder" or self.states_prediction(checkpoint) or _VELOCITY_BIAS not in checkpoint.shapes:
            return stated
        bias = checkpoint.tensors(lambda key: key == _VELOCITY_BIAS)[_VELOCITY_BIAS]
        velocity = float(bias.float().std(unbiased=False)) > _VELOCITY_SPREAD
        return Prediction("v_prediction" if velocity else "epsilon", stated.zero_terminal_snr)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> clip_text.ClipText:
        """OpenCLIP ViT-H's text model up to the layer before the last."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            model = clip_weights.load_from_subfolder(CLIPTextModel, checkpoint, "text_encoder", dtype)
        else:
            model = clip_weights.load_open_clip(checkpoint, _TEXT_PREFIX, family="SD 2.x", projection=False)
        tokenizer = clip_text.zero_padded(clip_text.tokenizer(checkpoint))
        return clip_text.ClipText(tokenizer, model.to(device=device, dtype=dtype), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> clip_text.ClipText:
        """The text model on the ``meta`` device, without a tokenizer."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            model = clip_weights.empty_from_subfolder(CLIPTextModel, checkpoint, "text_encoder")
        else:
            model = clip_weights.empty_open_clip(checkpoint, _TEXT_PREFIX, family="SD 2.x", projection=False)
        return clip_text.ClipText(None, model, settings)


FAMILY = StableDiffusion2()
