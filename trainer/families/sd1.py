"""Stable Diffusion 1.x: context width 768, one CLIP ViT-L text encoder, epsilon prediction unless the file says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from . import clip, ldm
from .base import PLAIN_TEXT, TextSettings
from .checkpoint import BaseCheckpoint
from .markers import read_json
from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch

# transformers' key prefix in original-layout files; some merges drop "text_model."
_TEXT_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")


class StableDiffusion1(StableDiffusion):
    """The family's one instance is ``trainer.families.sd1.FAMILY``."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    latent_scale = 0.18215  # scaling_factor of SD 1.x's VAE: makes latents about unit variance
    heads: int | None = 8

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """An LDM UNet with 1x1-conv projections and a CLIP text model of the same width as its context."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            plain = config.get("in_channels", 4) == 4 and config.get("addition_embed_type") is None
            return plain and not config.get("use_linear_projection")
        shapes = checkpoint.shapes
        if not ldm.has_plain_unet(shapes):
            return False
        return bool(_text_prefix(shapes)) and not ldm.unet_config(shapes, heads=self.heads)["use_linear_projection"]

    def text_settings(self, max_tokens: int, clip_skip: int) -> TextSettings:
        """Any layer; the last is the one that SD 1.x was trained on."""
        return TextSettings(max_tokens, 0 if clip_skip == 1 else clip_skip)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> clip.ClipText:
        """CLIP ViT-L's text model with the tokenizer that travels with the pack."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            model = clip.load_folder(CLIPTextModel, checkpoint, "text_encoder", dtype)
        else:
            model = clip.load_openai(checkpoint, _text_prefix(checkpoint.shapes), family="SD 1.x")
        if settings.clip_skip > (layers := model.config.num_hidden_layers):
            raise UserError(
                f"training.clip_skip is {settings.clip_skip}, but the text encoder of {checkpoint.name} has {layers} layers.",
                "Set training.clip_skip = 2, as most anime models want, or 0 for the model's own.",
                kind="config",
            )
        return clip.ClipText(clip.tokenizer(checkpoint), model.to(device=device, dtype=dtype), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> clip.ClipText:
        """The text model on the ``meta`` device, without a tokenizer."""
        from transformers import CLIPTextModel

        if checkpoint.kind == "folder":
            return clip.ClipText(None, clip.empty_folder(CLIPTextModel, checkpoint, "text_encoder"), settings)
        return clip.ClipText(None, clip.empty_openai(checkpoint, _text_prefix(checkpoint.shapes), family="SD 1.x"), settings)

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> clip.ClipText:
        """The pipeline's text model with its tokenizer."""
        return clip.ClipText(pipeline.tokenizer, pipeline.text_encoder, settings)

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """``StableDiffusionPipeline`` without a safety checker, as ComfyUI has none."""
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        text = self.load_text_encoder(checkpoint, dtype, torch.device("cpu"), settings)
        return StableDiffusionPipeline(
            vae=self.load_vae(checkpoint, torch.float32),
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=self.load_denoiser(checkpoint, dtype),
            scheduler=self.sampling_scheduler(self.prediction(checkpoint)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def image_to_image(self, pipeline: Any) -> Any:
        """``StableDiffusionImg2ImgPipeline`` around the parts of ``pipeline``."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline

        return StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)


def _text_prefix(shapes: ldm.Shapes) -> str:
    for prefix in _TEXT_PREFIXES:
        if f"{prefix}embeddings.token_embedding.weight" in shapes:
            return prefix
    return ""


FAMILY = StableDiffusion1()
