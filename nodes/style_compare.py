"""Style Compare: strengths, guidances and prompts side by side in one labelled picture."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from .folders import lora_names
from .load_lora import FROM_INPUT
from .schema import field, result, schema
from .types import LORA


class StyleCompare(io.ComfyNode):
    """Schema and call of Style Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "StyleCompare",
            "Style Compare",
            "Paints every combination of LoRA strength, guidance and prompt and puts them in one labelled grid, "
            "with a row without the LoRA to compare with.",
            [
                field(io.Model, "model", "The model without the LoRA (straight from the loader)."),
                field(io.Clip, "clip", "The text encoder without the LoRA."),
                field(io.Vae, "vae", "The VAE of the model."),
                field(
                    io.Combo,
                    "lora_name",
                    "The LoRA to look at. Not used while something is connected to the lora input.",
                    options=[FROM_INPUT, *lora_names()],
                    default=FROM_INPUT,
                ),
                field(
                    io.String,
                    "prompts",
                    "One prompt per line; each gets its own block of the grid.",
                    default="anime_face girl, high quality\nanime_face boy with glasses, high quality",
                    multiline=True,
                ),
                field(
                    io.String,
                    "negative",
                    "What should not be in the pictures.",
                    default="lowres, blurry, bad anatomy, photo",
                    multiline=True,
                ),
                field(
                    io.String,
                    "lora_strengths",
                    "LoRA strengths to compare, separated by commas: one row each, under a row without the LoRA.",
                    default="0.6, 0.8, 1.0",
                ),
                field(
                    io.String,
                    "guidances",
                    "Guidance (CFG) values to compare, separated by commas: one column each.",
                    default="5, 7.5, 10",
                ),
                field(
                    io.String,
                    "img2img_strengths",
                    "Used when an image is connected: how far to move away from it, separated by commas; one column each for every guidance.",
                    default="0.65, 0.8",
                ),
                field(io.Int, "steps", "Painting steps of each picture.", default=25, min=1, max=10_000),
                field(
                    io.Combo,
                    "sampler_name",
                    "The painting method.",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    default="dpmpp_2m",
                ),
                field(
                    io.Combo,
                    "scheduler",
                    "How the steps are spread from coarse to fine.",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="karras",
                ),
                field(
                    io.Int,
                    "seed",
                    "The dice: all pictures of the grid use the same number, so that only the settings differ.",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    control_after_generate=True,
                ),
                field(io.Int, "width", "Width of each picture when no image is connected.", default=512, min=64, max=4096, step=8),
                field(io.Int, "height", "Height of each picture when no image is connected.", default=512, min=64, max=4096, step=8),
                field(LORA, "lora", "A LoRA fresh from Train LoRA. It wins over the list.", optional=True),
                field(io.Image, "image", "A photo to repaint in every cell. Without it pictures are painted from the prompt alone.", optional=True),
            ],
            [
                result(io.Image, "grid", "All pictures in one, with labels."),
                result(io.Image, "images", "The pictures alone, row by row."),
            ],
            search=["xy plot", "lora grid", "compare strengths", "compare guidance"],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Paint the grid."""
        raise NotImplementedError
