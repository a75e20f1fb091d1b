"""Stable Diffusion 1.x: context width 768, one CLIP ViT-L text encoder, epsilon prediction unless the file states another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..core.messages import Message, Setting
from .checkpoints.base_checkpoint import BaseCheckpoint
from .checkpoints.diffusers_folder import read_json
from .interface import PLAIN_TEXT, TextSettings
from .stable_diffusion import clip_text, clip_weights, ldm_configs
from .stable_diffusion.family import StableDiffusion

if TYPE_CHECKING:
    import torch

# transformers' key prefix in files of the original layout; some merges lack "text_model."
_TEXT_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")


class StableDiffusion1(StableDiffusion):
    """The family SD 1.x."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    heads: int | None = 8

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A UNet whose projections are 1x1 convolutions, and a CLIP text model in transformers' layout."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            plain = config.get("in_channels", 4) == 4 and config.get("addition_embed_type") is None
            return plain and not config.get("use_linear_projection")
        shapes = checkpoint.shapes
        if not ldm_configs.has_plain_unet(shapes):
            return False
        return bool(_text_prefix(shapes)) and not ldm_configs.unet_config(shapes, heads=self.heads)["use_linear_projection"]

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """Any layer may be used. SD 1.x was trained on the last one."""
        return TextSettings(max_tokens, 0 if clip_skip == 1 else clip_skip)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> clip_text.ClipText:
        """CLIP ViT-L's text model with its tokenizer."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            model = clip_weights.load_from_subfolder(CLIPTextModel, checkpoint, "text_encoder", dtype)
        else:
            model = clip_weights.load_openai(checkpoint, _text_prefix(checkpoint.shapes), family="SD 1.x")
        if settings.clip_skip > (layers := model.config.num_hidden_layers):
            raise UserError(
                Message(
                    Setting("training.clip_skip"),
                    f" is {settings.clip_skip}, but the text encoder of {checkpoint.name} has {layers} layers.",
                ),
                Message("Set ", Setting("training.clip_skip", 2), ", which suits most anime models, or 0 for the model's default."),
                kind="config",
            )
        return clip_text.ClipText(clip_text.tokenizer(checkpoint), model.to(device=device, dtype=dtype), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> clip_text.ClipText:
        """The text model on the ``meta`` device, without a tokenizer."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            return clip_text.ClipText(None, clip_weights.empty_from_subfolder(CLIPTextModel, checkpoint, "text_encoder"), settings)
        return clip_text.ClipText(None, clip_weights.empty_openai(checkpoint, _text_prefix(checkpoint.shapes), family="SD 1.x"), settings)


def _text_prefix(shapes: ldm_configs.Shapes) -> str:
    return next((prefix for prefix in _TEXT_PREFIXES if f"{prefix}embeddings.token_embedding.weight" in shapes), "")


FAMILY = StableDiffusion1()
