"""SDXL: context width 2048 from two text encoders, and a UNet that is also told the pooled prompt, the size and the crop.

Illustrious, Pony, Animagine and NoobAI are of this family; NoobAI's v-prediction files say so by marker tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.gpu_sync import to_device
from . import clip, ldm
from .base import PLAIN_TEXT, Framing, TextSettings
from .checkpoint import BaseCheckpoint
from .markers import read_json
from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch
    from torch import nn

_FIRST_PREFIX = "conditioner.embedders.0.transformer.text_model."
_SECOND_PREFIX = "conditioner.embedders.1.model."
_TIME_IDS = 6


class StableDiffusionXL(StableDiffusion):
    """The family's one instance is ``trainer.families.sdxl.FAMILY``."""

    name = "sdxl"
    title = "SDXL"
    latent_scale = 0.13025  # scaling_factor of SDXL's VAE
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    preset_group = "sdxl"
    learning_rate = 5e-5  # the usual halving for the larger UNet

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A UNet with a size embedding, and both text encoders. The refiner, which has only the second, is not of this family."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            encoders = all((checkpoint.path / part).is_dir() for part in ("text_encoder", "text_encoder_2"))
            return config.get("addition_embed_type") == "text_time" and config.get("in_channels", 4) == 4 and encoders
        shapes = checkpoint.shapes
        sized = ldm.has_unet(shapes) and f"{ldm.UNET}label_emb.0.0.weight" in shapes
        named = (f"{_FIRST_PREFIX}embeddings.token_embedding.weight", f"{_SECOND_PREFIX}token_embedding.weight")
        return sized and all(name in shapes for name in named)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> DualClipText:
        """CLIP ViT-L and OpenCLIP ViT-bigG, each up to its last but one layer; the second's pooled output comes with it."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        if checkpoint.kind == "folder":
            first = clip.load_folder(CLIPTextModel, checkpoint, "text_encoder", dtype)
            second = clip.load_folder(CLIPTextModelWithProjection, checkpoint, "text_encoder_2", dtype)
        else:
            first = clip.load_openai(checkpoint, _FIRST_PREFIX, family=self.title)
            second = clip.load_open_clip(checkpoint, _SECOND_PREFIX, family=self.title, projection=True)
        tokenizers = clip.tokenizer(checkpoint), clip.zero_padded(clip.tokenizer(checkpoint, "tokenizer_2"))
        models = (model.to(device=device, dtype=dtype) for model in (first, second))
        return _dual(tokenizers, (next(models), next(models)), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> DualClipText:
        """Both text models on the ``meta`` device, without tokenizers."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        if checkpoint.kind == "folder":
            first = clip.empty_folder(CLIPTextModel, checkpoint, "text_encoder")
            second = clip.empty_folder(CLIPTextModelWithProjection, checkpoint, "text_encoder_2")
        else:
            first = clip.empty_openai(checkpoint, _FIRST_PREFIX, family=self.title)
            second = clip.empty_open_clip(checkpoint, _SECOND_PREFIX, family=self.title, projection=True)
        return _dual((None, None), (first, second), settings)

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` (batch, 77, width); ``text_embeds`` (batch, pooled width) and ``time_ids`` (batch, 6) in fp32, as
        bf16 would round them: height and width of the source, top and left of the cut, height and width of the picture."""
        import torch

        inputs = super().denoiser_inputs(conditions, framings, device, dtype)
        pooled = [condition["pooled"].to(device=device, dtype=dtype, non_blocking=True) for condition in conditions]
        rows = [[*framing.original[::-1], *framing.crop_top_left, *framing.target[::-1]] for framing in framings]
        numbers = torch.tensor(rows, dtype=torch.float32)
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.stack(pooled),
            "time_ids": to_device(numbers, device),
        }
        return inputs

    def empty_condition(self, unet: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` for ``max_tokens`` between a start and an end, and ``pooled``."""
        import torch

        config: Any = unet.config
        width = int(config.projection_class_embeddings_input_dim) - _TIME_IDS * int(config.addition_time_embed_dim)
        return {**super().empty_condition(unet, max_tokens), "pooled": torch.empty(width, device="meta")}

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> DualClipText:
        """Both text models of the pipeline with their tokenizers."""
        return _dual((pipeline.tokenizer, pipeline.tokenizer_2), (pipeline.text_encoder, pipeline.text_encoder_2), settings)

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """``StableDiffusionXLPipeline``; empty negative prompts are encoded, not zeroed, as in ComfyUI and in training."""
        import torch
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        text = self.load_text_encoder(checkpoint, dtype, torch.device("cpu"), settings)
        return StableDiffusionXLPipeline(
            vae=self.load_vae(checkpoint, torch.float32),
            text_encoder=text.first.model,
            text_encoder_2=text.second.model,
            tokenizer=text.first.tokenizer,
            tokenizer_2=text.second.tokenizer,
            unet=self.load_denoiser(checkpoint, dtype),
            scheduler=self.sampling_scheduler(self.prediction(checkpoint)),
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )

    def image_to_image(self, pipeline: Any) -> Any:
        """``StableDiffusionXLImg2ImgPipeline`` around the parts of ``pipeline``."""
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline

        return StableDiffusionXLImg2ImgPipeline(**pipeline.components, force_zeros_for_empty_prompt=False, add_watermarker=False)


class DualClipText:
    """Both text encoders on the same prompt, side by side."""

    def __init__(self, first: clip.ClipText, second: clip.ClipText) -> None:
        self.first = first
        self.second = second

    @property
    def modules(self) -> dict[str, Any]:
        """Both text models by component."""
        return {**self.first.modules, **self.second.modules}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """One table per prompt, with the token ids of both: they differ in their padding."""
        return [{**first, **second} for first, second in zip(self.first.tokenize(prompts), self.second.tokenize(prompts), strict=True)]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (tokens, first width + second width) and ``pooled`` (projection width,), on the models' device."""
        import torch

        rows = zip(self.first.conditions(tokens), self.second.conditions(tokens), strict=True)
        return [{"embeds": torch.cat([first["embeds"], second["embeds"]], dim=-1), "pooled": second["pooled"]} for first, second in rows]

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        return clip.encode(self, prompts)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` without the start and end tokens."""
        return self.first.count_tokens(prompt)


def _dual(tokenizers: tuple[Any, Any], models: tuple[Any, Any], settings: TextSettings) -> DualClipText:
    """Both encoders as SDXL uses them: the layer before the last, without the final norm."""
    own = replace(settings, clip_skip=2)
    first = clip.ClipText(tokenizers[0], models[0], own, normed=False)
    return DualClipText(first, clip.ClipText(tokenizers[1], models[1], own, normed=False, component="te2"))


FAMILY = StableDiffusionXL()
