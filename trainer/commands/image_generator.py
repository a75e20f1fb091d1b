"""Generating images with a checkpoint and LoRA files in a diffusers pipeline.

On the canvas ComfyUI generates them; this is for machines without it, for the demo, and for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.devices import pick_device
from ..core.errors import UserError
from ..core.library_imports import import_models
from ..families import PLAIN_TEXT, BaseCheckpoint, Prediction, TextSettings, choose_kind, family_of, supported_predictions
from ..training.caching.weighted_prompts import encode_keys, prompt_key, prompt_text
from ..training.monitoring.latent_sampling import decode_to_image, sample_latents
from .separate_models import SeparateModels

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and the strength it is applied with (1 is as trained)."""

    path: Path
    strength: float = 1.0


class ImageGenerator:
    """A loaded checkpoint. LoRAs can be changed between images; the pipelines share their weights."""

    def __init__(
        self,
        checkpoint: BaseCheckpoint,
        *,
        device: str = "auto",
        precision: str = "fp32",
        prediction: Prediction | None = None,
        text: TextSettings = PLAIN_TEXT,
    ) -> None:
        """``prediction``: what the checkpoint predicts, if not what its file states; ``text``: how prompts are encoded, with at least as
        many tokens as it says."""
        from ..core.devices import torch_dtype

        self._family = family = family_of(checkpoint)
        if prediction is None:
            prediction = family.prediction(checkpoint)
            choose_kind(prediction, "auto", supported_predictions(family), name=checkpoint.name, title=family.title)
        self._prediction, self._text = prediction, text
        self._device, self._dtype = pick_device(device), torch_dtype(precision)
        pipeline: Any = family.pipeline(checkpoint, dtype=self._dtype, settings=text)
        if pipeline is None:
            self._text_to_image: Any = SeparateModels(family, checkpoint, self._dtype, self._device, text)
            return
        self._text_to_image = pipeline.to(self._device)
        self._text_to_image.scheduler = family.sampling_scheduler(prediction)
        self._image_to_image: Any = family.image_to_image(self._text_to_image)
        for each in (self._text_to_image, self._image_to_image):
            each.set_progress_bar_config(disable=True)

    def apply_loras(self, loras: Sequence[LoraUse]) -> None:
        """Apply these LoRA files in place of the current ones. Raises UserError for a file that does not fit the checkpoint."""
        pipeline = self._text_to_image
        if isinstance(pipeline, SeparateModels):
            pipeline.apply_loras([(lora.path, lora.strength) for lora in loras])
            return
        pipeline.unload_lora_weights()
        for index, lora in enumerate(loras):
            try:
                pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name=f"lora{index}")
            except Exception as error:  # diffusers raises many types for a file that does not fit
                raise UserError(
                    f"{lora.path.name} does not fit this checkpoint: {str(error).splitlines()[0][:200]}",
                    f"See what it is with: python -m trainer info {lora.path}",
                    kind="lora",
                ) from error
        if loras:
            pipeline.set_adapters([f"lora{index}" for index in range(len(loras))], [lora.strength for lora in loras])

    def generate(
        self,
        prompt: str,
        *,
        negative: str = "",
        width: int,
        height: int,
        steps: int = 20,
        guidance: float = 7.5,
        seed: int = 42,
        image: Image.Image | None = None,
        strength: float = 1.0,
        shift: float = 0.0,
    ) -> Image.Image:
        """An image as training makes its validation images. Prompts mean what they mean in ComfyUI: any length, ``(word:1.2)`` for weights.
        ``shift`` is that of a rectified flow (0: the family's).

        With ``image``, image to image: ``strength`` means what it means on the canvas with the scheduler karras, and the size is the
        image's, cut to multiples of what the model needs (8, for Anima 16).
        """
        import torch

        multiple = self._family.latents.multiple
        if image is None and (width % multiple or height % multiple):
            raise UserError(
                f"{width}x{height} are no multiples of {multiple}, which {self._family.title} needs.", "Try 512.", kind="config"
            )

        pipeline = self._text_to_image
        start = None
        if image is not None:
            image = _cropped(image, self._family.latents.multiple)
            width, height = image.size
            with torch.no_grad():
                start = self._family.encode_images(pipeline.vae, _pixels(image).to(self._device, pipeline.vae.dtype))[0]
        condition, without = self._conditions(prompt, negative)
        latents = sample_latents(
            pipeline.unet,
            self._family,
            condition,
            without,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            generator=self._noise(seed),
            device=self._device,
            dtype=self._dtype,
            prediction=self._prediction,
            start=start,
            strength=strength,
            shift=shift,
        )
        assert latents is not None
        return decode_to_image(self._family, pipeline.vae, latents)

    def _conditions(self, *prompts: str) -> list[dict[str, torch.Tensor]]:
        """The conditioning of each prompt, with as many tokens as the longest needs."""
        encoder = self._family.encoder_of(self._text_to_image, self._text)
        needed = max(encoder.count_tokens(prompt_text(prompt)) for prompt in prompts)
        encoder = self._family.encoder_of(self._text_to_image, self._text.covering(needed))
        return encode_keys(encoder, [prompt_key(prompt) for prompt in prompts])

    def generate_with_diffusers(
        self,
        prompt: str,
        *,
        negative: str = "",
        width: int = 512,
        height: int = 512,
        steps: int = 20,
        guidance: float = 7.5,
        seed: int = 42,
        image: Image.Image | None = None,
        strength: float = 1.0,
    ) -> Image.Image:
        """An image as diffusers' own pipelines make it; ``width`` and ``height`` in pixels, multiples of the VAE's factor.

        With ``image``, image to image with diffusers' meaning of ``strength``: the share of ``steps`` that is taken, from 0, which keeps
        the image, to 1, which ignores it. The size is then the image's, cropped to multiples of the VAE's factor.
        """
        options: dict[str, Any] = {
            "negative_prompt": negative,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "generator": self._noise(seed),
        }
        if image is None:
            result = self._text_to_image(prompt, width=width, height=height, **options)
        else:
            result = self._image_to_image(prompt, image=_cropped(image, self._family.latents.downscale), strength=strength, **options)
        generated: Image.Image = result.images[0]
        return generated

    @staticmethod
    def _noise(seed: int) -> Any:
        import torch

        return torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same image on every device


def _cropped(image: Image.Image, multiple: int) -> Image.Image:
    """``image`` in RGB, cropped at the right and bottom to multiples of so many pixels."""
    width, height = (side // multiple * multiple for side in image.size)
    return image.convert("RGB").crop((0, 0, width, height))


def _pixels(image: Image.Image) -> torch.Tensor:
    """``image`` as fp32 (1, 3, height, width) in -1..1."""
    import numpy as np
    import torch

    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None] * 2 - 1


def load_generator(checkpoint: BaseCheckpoint, **options: Any) -> ImageGenerator:
    """An ``ImageGenerator`` with these ``options``, for processes of our own, not ComfyUI's (see ``library_imports.import_models``)."""
    import_models(pipelines=True)
    return ImageGenerator(checkpoint, **options)
