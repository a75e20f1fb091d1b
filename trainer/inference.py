"""Pictures on the command line: a checkpoint with LoRA files in a diffusers pipeline.

On the canvas ComfyUI samples; this is for machines without it, for the demo, and for checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import pick_device
from .errors import UserError
from .families import Checkpoint, family_of, open_checkpoint, require_supported
from .imports import import_models

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and the strength it is applied with (1 is as trained)."""

    path: Path
    strength: float = 1.0


class Painter:
    """A checkpoint ready to make pictures; the pipelines share their weights. LoRAs can be changed between pictures."""

    def __init__(self, checkpoint: Checkpoint, *, device: str = "auto", precision: str = "fp32") -> None:
        from .devices import torch_dtype

        family = family_of(checkpoint)
        require_supported(family.prediction(checkpoint), checkpoint.name)
        self._device = pick_device(device)
        self._text_to_image: Any = family.pipeline(checkpoint, dtype=torch_dtype(precision)).to(self._device)
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
        """Image to image: ``strength`` 0 keeps the picture, 1 ignores it. The size is the picture's, cut to multiples of 8."""
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


def open_painter(reference: str, *, device: str = "auto", precision: str = "fp32") -> Painter:
    """A painter for a checkpoint file, a diffusers folder or a hub id. For processes of the pack's own (see ``imports.import_models``)."""
    import_models(pipelines=True)
    return Painter(open_checkpoint(reference), device=device, precision=precision)
