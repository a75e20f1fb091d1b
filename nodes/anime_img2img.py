"""Anime Img2Img: turn photos into images in the LoRA's style."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.core.errors import UserError
from .shared.browser import show_text
from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.images import side_by_side
from .shared.inputs.prompts import with_trigger_words
from .shared.inputs.sockets import allow, require
from .shared.loras.sampling_warning import applied_warnings
from .shared.schema import field, result, schema

log = logging.getLogger("animelora")


class AnimeImg2Img(io.ComfyNode):
    """Schema and call of Anime Img2Img."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "AnimeImg2Img",
            "Anime Img2Img",
            "Turns a photo (or a batch of photos) into an image in the style of your LoRA. "
            "The pixels are those of VAE Encode, KSampler and VAE Decode with the same settings.",
            [
                field(io.Model, "model", "The model with your LoRA applied (from Load LoRA)."),
                field(io.Clip, "clip", "The text encoder that reads the prompts."),
                field(io.Vae, "vae", "The VAE of the model."),
                field(io.Image, "image", "The photo or photos to transform."),
                field(
                    io.String,
                    "positive",
                    "What the image should show.",
                    default="anime_face girl, high quality",
                    multiline=True,
                    dynamic_prompts=True,
                ),
                field(
                    io.String,
                    "negative",
                    "What the image should not show.",
                    default="lowres, blurry, bad anatomy, photo",
                    multiline=True,
                    dynamic_prompts=True,
                ),
                field(
                    io.Float,
                    "strength",
                    "How much the photo changes (denoise): 0.65 keeps the person, 0.8 gives more of the style.",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                ),
                field(
                    io.Float,
                    "guidance",
                    "How closely the image follows the prompt (CFG). For Anima: 4.",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                ),
                field(
                    io.Int,
                    "steps",
                    "Number of sampling steps. More steps are slower and give slightly finer images.",
                    default=25,
                    min=1,
                    max=10_000,
                ),
                *core_nodes.sampler_fields(),
                field(
                    io.Int,
                    "seed",
                    "Random seed. The same seed and settings give the same image.",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    control_after_generate=True,
                ),
                field(
                    io.String,
                    "trigger_words",
                    "The LoRA's trigger words (from Load LoRA). Those that are missing from the prompt are put in front of it.",
                    optional=True,
                    force_input=True,
                ),
                field(
                    io.ControlNet,
                    "control_net",
                    "A ControlNet that preserves the shapes of the photo (from Load ControlNet Model).",
                    optional=True,
                ),
                field(
                    io.Image,
                    "control_image",
                    "The input of the ControlNet, for example the photo's outlines. Without it, the photo itself is used.",
                    optional=True,
                ),
                field(
                    io.Float,
                    "control_strength",
                    "How strongly the ControlNet acts. 0 turns it off.",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                ),
            ],
            [
                result(io.Image, "image", "The new image or images."),
                result(io.Image, "before_after", "Photo and new image side by side."),
            ],
            search=["photo to anime", "img2img", "image to image", "stylize"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: torch.Tensor,
        positive: str,
        negative: str,
        strength: float,
        guidance: float,
        steps: int,
        sampler_name: str,
        scheduler: str,
        seed: int,
        trigger_words: str | None = None,
        control_net: Any = None,
        control_image: torch.Tensor | None = None,
        control_strength: float = 1.0,
    ) -> io.NodeOutput:
        """Transform the photos."""
        with canvas_errors():
            require(model=model, clip=clip, vae=vae, image=image)
            allow(control_net=control_net, control_image=control_image)
            _check(image, vae)
            warnings = applied_warnings(model)
            show_text(cls.hidden.unique_id, "\n".join(warnings))
            for warning in warnings:
                log.warning("%s", warning)
            prompt = core_nodes.encode_text(clip, with_trigger_words(positive, trigger_words))
            avoid = core_nodes.encode_text(clip, negative)
            if control_net is not None:
                hint = image if control_image is None else control_image
                prompt, avoid = core_nodes.apply_control(prompt, avoid, control_net, hint, control_strength, vae)
            latent = core_nodes.encode_image(vae, image)
            latent = core_nodes.sample(model, seed, steps, guidance, sampler_name, scheduler, prompt, avoid, latent, strength)
            decoded = core_nodes.decode_latents(vae, latent)
            return io.NodeOutput(decoded, side_by_side(core_nodes.crop_to_latent(vae, image), decoded))


def _check(image: torch.Tensor, vae: Any) -> None:
    factor = vae.spacial_compression_encode()
    height, width = image.shape[1:3]
    if min(height, width) < factor:
        raise UserError(f"The image is {width} × {height} pixels; the VAE needs at least {factor} × {factor}.", "Use a larger image.")
