"""Pictures on the command line: a checkpoint with LoRA files in a diffusers pipeline.

On the canvas ComfyUI samples; this is for machines without it, for the demo, and for checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.devices import pick_device
from ..core.errors import UserError
from ..core.library_imports import import_models
from ..families import PLAIN_TEXT, BaseCheckpoint, Prediction, TextSettings, family_of, open_checkpoint, require_supported
from ..families.stable_diffusion.clip_text import CHUNK
from ..training.monitoring.preview_sampling import decode, sample_latents
from ..training.weighted_prompts import encode_keys, prompt_key, prompt_text

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and the strength it is applied with (1 is as trained)."""

    path: Path
    strength: float = 1.0


class Painter:
    """A checkpoint ready to make pictures; the pipelines share their weights. LoRAs can be changed between pictures."""

    def __init__(
        self,
        checkpoint: BaseCheckpoint,
        *,
        device: str = "auto",
        precision: str = "fp32",
        prediction: Prediction | None = None,
        text: TextSettings = PLAIN_TEXT,
    ) -> None:
        """``prediction``: what the checkpoint predicts, if not what it says; ``text``: how prompts are read, at least so many tokens."""
        from ..core.devices import torch_dtype

        self._family = family = family_of(checkpoint)
        if prediction is None:
            prediction = family.prediction(checkpoint)
            require_supported(prediction, checkpoint.name)
        self._prediction, self._text = prediction, text
        self._device, self._dtype = pick_device(device), torch_dtype(precision)
        self._text_to_image: Any = family.pipeline(checkpoint, dtype=self._dtype, settings=text).to(self._device)
        self._text_to_image.scheduler = family.sampling_scheduler(prediction)
        self._image_to_image: Any = family.image_to_image(self._text_to_image)
        for pipeline in (self._text_to_image, self._image_to_image):
            pipeline.set_progress_bar_config(disable=True)

    def use(self, loras: Sequence[LoraUse]) -> None:
        """Apply these LoRA files instead of the present ones. Raises UserError for a file that does not fit."""
        pipeline = self._text_to_image
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

    def sample(
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
    ) -> Image.Image:
        """An image as validation images are made and with ComfyUI's meaning of prompts: of any length, ``(word:1.2)`` weighs a word.

        With ``image`` it is changed as far as ``strength`` says, which means what it means on the canvas with scheduler karras; the size
        is then the image's, cut to multiples of 8.
        """
        import torch

        pipeline = self._text_to_image
        start = None
        if image is not None:
            width, height = (side // 8 * 8 for side in image.size)
            pixels = pipeline.image_processor.preprocess(image.convert("RGB").crop((0, 0, width, height)))
            with torch.no_grad():
                encoded = pipeline.vae.encode(pixels.to(self._device, pipeline.vae.dtype)).latent_dist.mode()
            start = encoded * pipeline.vae.config.scaling_factor
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
            generator=self._generator(seed),
            device=self._device,
            dtype=self._dtype,
            prediction=self._prediction,
            start=start,
            strength=strength,
        )
        assert latents is not None
        return decode(pipeline.vae, latents)

    def _conditions(self, *prompts: str) -> list[dict[str, torch.Tensor]]:
        """The conditionings of ``prompts``, all as long as the longest needs, in chunks of 75 tokens."""
        encoder = self._family.encoder_of(self._text_to_image, self._text)
        needed = max(encoder.count_tokens(prompt_text(prompt)) for prompt in prompts)
        tokens = max(self._text.max_tokens, -(-needed // CHUNK) * CHUNK)
        encoder = self._family.encoder_of(self._text_to_image, replace(self._text, max_tokens=tokens))
        return encode_keys(encoder, [prompt_key(prompt) for prompt in prompts])

    def paint(
        self,
        prompt: str,
        *,
        negative: str = "",
        width: int,
        height: int,
        steps: int = 20,
        guidance: float = 7.5,
        seed: int = 42,
    ) -> Image.Image:
        """Text to image; ``width`` and ``height`` in pixels, multiples of 8."""
        result = self._text_to_image(
            prompt,
            negative_prompt=negative,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=self._generator(seed),
        )
        image: Image.Image = result.images[0]
        return image

    def repaint(
        self,
        image: Image.Image,
        prompt: str,
        *,
        strength: float,
        negative: str = "",
        steps: int = 20,
        guidance: float = 7.5,
        seed: int = 42,
    ) -> Image.Image:
        """Image to image with diffusers' meaning of ``strength``, the share of ``steps`` that is taken: 0 keeps the image, 1 ignores it.

        The size is the image's, cut to multiples of 8.
        """
        width, height = (side // 8 * 8 for side in image.size)
        result = self._image_to_image(
            prompt,
            negative_prompt=negative,
            image=image.convert("RGB").crop((0, 0, width, height)),
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=self._generator(seed),
        )
        made: Image.Image = result.images[0]
        return made

    @staticmethod
    def _generator(seed: int) -> Any:
        import torch

        return torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same picture on every device


def open_painter(reference: str, *, device: str = "auto", precision: str = "fp32", vae: str = "", **options: Any) -> Painter:
    """A painter, with the ``options`` of ``Painter``, for a checkpoint file, a diffusers folder or a hub id, and the VAE that is named.

    For processes of the pack's own (see ``imports.import_models``).
    """
    import_models(pipelines=True)
    return Painter(open_checkpoint(reference, vae), device=device, precision=precision, **options)
