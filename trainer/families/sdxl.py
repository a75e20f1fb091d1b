"""SDXL: context width 2048 from two text encoders. Its UNet is also conditioned on the pooled prompt, the image size and the crop.

Illustrious, Pony, Animagine and NoobAI belong to this family. NoobAI's v-prediction files state their prediction by marker tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.gpu_sync import to_device
from .checkpoints.base_checkpoint import BaseCheckpoint
from .checkpoints.diffusers_folder import read_json
from .interface import PLAIN_TEXT, Flow, Framing, LatentSpace, TextSettings
from .stable_diffusion import clip_text, clip_weights, ldm_configs
from .stable_diffusion.family import StableDiffusion

if TYPE_CHECKING:
    import torch
    from torch import nn

_FIRST_PREFIX = "conditioner.embedders.0.transformer.text_model."
_SECOND_PREFIX = "conditioner.embedders.1.model."
_TIME_IDS = 6  # sizes and positions that the UNet is conditioned on


class StableDiffusionXL(StableDiffusion):
    """The family SDXL."""

    name = "sdxl"
    title = "SDXL"
    latents = LatentSpace(channels=4, downscale=8, scaling_factor=0.13025)  # SDXL's VAE
    text_folders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    text_components: tuple[str, ...] = ("te1", "te2")
    preset_group = "sdxl"
    learning_rate = 5e-5  # half of SD 1.x's, as usual for the larger UNet
    flow: Flow | None = Flow(timestep_multiplier=1000.0)  # NoobAI's rectified flow and its kin: the UNet keeps its timesteps

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A UNet with a size embedding, and both text encoders. The refiner has only the second, so it does not belong to this family."""
        if checkpoint.kind == "folder":
            config = read_json(checkpoint.path / "unet" / "config.json")
            encoders = all((checkpoint.path / part).is_dir() for part in ("text_encoder", "text_encoder_2"))
            return config.get("addition_embed_type") == "text_time" and config.get("in_channels", 4) == 4 and encoders
        shapes = checkpoint.shapes
        sized = ldm_configs.has_unet(shapes) and f"{ldm_configs.UNET}label_emb.0.0.weight" in shapes
        named = (f"{_FIRST_PREFIX}embeddings.token_embedding.weight", f"{_SECOND_PREFIX}token_embedding.weight")
        return sized and all(name in shapes for name in named)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> DualClipText:
        """CLIP ViT-L and OpenCLIP ViT-bigG, each up to the layer before the last, and the pooled output of the second."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        if checkpoint.kind == "folder":
            first = clip_weights.load_from_subfolder(CLIPTextModel, checkpoint, "text_encoder", dtype)
            second = clip_weights.load_from_subfolder(CLIPTextModelWithProjection, checkpoint, "text_encoder_2", dtype)
        else:
            first = clip_weights.load_openai(checkpoint, _FIRST_PREFIX, family=self.title)
            second = clip_weights.load_open_clip(checkpoint, _SECOND_PREFIX, family=self.title, projection=True)
        tokenizers = clip_text.tokenizer(checkpoint), clip_text.zero_padded(clip_text.tokenizer(checkpoint, "tokenizer_2"))
        models = (model.to(device=device, dtype=dtype) for model in (first, second))
        return _dual(tokenizers, (next(models), next(models)), settings)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> DualClipText:
        """Both text models on the ``meta`` device, without tokenizers."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        if checkpoint.kind == "folder":
            first = clip_weights.empty_from_subfolder(CLIPTextModel, checkpoint, "text_encoder")
            second = clip_weights.empty_from_subfolder(CLIPTextModelWithProjection, checkpoint, "text_encoder_2")
        else:
            first = clip_weights.empty_openai(checkpoint, _FIRST_PREFIX, family=self.title)
            second = clip_weights.empty_open_clip(checkpoint, _SECOND_PREFIX, family=self.title, projection=True)
        return _dual((None, None), (first, second), settings)

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` (batch, tokens, width), ``text_embeds`` (batch, pooled width) and ``time_ids`` (batch, 6): height and
        width of the source, top and left of the crop, height and width of the image. ``time_ids`` are fp32, because bf16 would round
        them."""
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

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of ``max_tokens`` tokens between a start and an end token, and ``pooled``."""
        import torch

        config: Any = denoiser.config
        width = int(config.projection_class_embeddings_input_dim) - _TIME_IDS * int(config.addition_time_embed_dim)
        return {**super().empty_condition(denoiser, max_tokens), "pooled": torch.empty(width, device="meta")}

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> DualClipText:
        """Both text models of the pipeline with their tokenizers."""
        return _dual((pipeline.tokenizer, pipeline.tokenizer_2), (pipeline.text_encoder, pipeline.text_encoder_2), settings)

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """``StableDiffusionXLPipeline``. Empty negative prompts are encoded, not zeroed, as in ComfyUI and in training."""
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
        """``StableDiffusionXLImg2ImgPipeline`` that shares the models of ``pipeline``."""
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline

        return StableDiffusionXLImg2ImgPipeline(**pipeline.components, force_zeros_for_empty_prompt=False, add_watermarker=False)


class DualClipText:
    """Both text encoders, applied to the same prompt."""

    def __init__(self, first: clip_text.ClipText, second: clip_text.ClipText) -> None:
        self.first = first
        self.second = second

    @property
    def modules(self) -> dict[str, Any]:
        """Both text models by component."""
        return {**self.first.modules, **self.second.modules}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """Token ids of each prompt for both text models, which differ in their padding."""
        return [{**first, **second} for first, second in zip(self.first.tokenize(prompts), self.second.tokenize(prompts), strict=True)]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (tokens, first width + second width) and ``pooled`` (projection width,), on the models' device."""
        import torch

        rows = zip(self.first.conditions(tokens), self.second.conditions(tokens), strict=True)
        return [{"embeds": torch.cat([first["embeds"], second["embeds"]], dim=-1), "pooled": second["pooled"]} for first, second in rows]

    def longest_input(self) -> dict[str, torch.Tensor]:
        """Token ids for both text models."""
        return {**self.first.longest_input(), **self.second.longest_input()}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        return clip_text.encode(self, prompts)

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See :func:`.stable_diffusion.clip_text.apply_weights`."""
        return clip_text.apply_weights(self, parts, row, empty)

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens in ``prompt``, without the start and end tokens."""
        return self.first.count_tokens(prompt)


def _dual(tokenizers: tuple[Any, Any], models: tuple[Any, Any], settings: TextSettings) -> DualClipText:
    """Both encoders with SDXL's settings: the layer before the last, without the final norm."""
    own = replace(settings, clip_skip=2)
    first = clip_text.ClipText(tokenizers[0], models[0], own, normed=False)
    return DualClipText(first, clip_text.ClipText(tokenizers[1], models[1], own, normed=False, component="te2"))


FAMILY = StableDiffusionXL()
