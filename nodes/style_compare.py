"""Style Compare: strengths, guidances and prompts side by side in one labelled picture."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from .load_lora import FROM_INPUT, chosen_lora, inspect, made_for, state_of
from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.folders import lora_names
from .shared.files.images import to_pil
from .shared.grids.render_grid import Easel, Setting, hang, paint, painting_fields, prompt_fields
from .shared.inputs.prompts import for_prompt, lines, numbers, with_trigger_words
from .shared.inputs.socket_types import LORA
from .shared.inputs.sockets import allow, require
from .shared.schema import field, result, schema


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
                *prompt_fields(),
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
                    "Used when an image is connected: how far to move away from it, separated by commas. "
                    "Every guidance gets one column for each.",
                    default="0.65, 0.8",
                ),
                *painting_fields(),
                field(io.Int, "width", "Width of each picture when no image is connected.", default=512, min=64, max=4096, step=8),
                field(io.Int, "height", "Height of each picture when no image is connected.", default=512, min=64, max=4096, step=8),
                field(
                    io.Boolean,
                    "add_trigger_words",
                    "Puts the LoRA's trigger words in front of every prompt that does not have them, in the row without the LoRA, too.",
                    default=True,
                ),
                field(LORA, "lora", "A LoRA fresh from Train LoRA. It wins over the list.", optional=True),
                field(
                    io.Image,
                    "image",
                    "A photo to repaint in every cell. Without it pictures are painted from the prompt alone.",
                    optional=True,
                ),
            ],
            [
                result(io.Image, "grid", "All pictures in one, with labels."),
                result(io.Image, "images", "The pictures alone, row by row."),
            ],
            search=["xy plot", "lora grid", "compare strengths", "compare guidance"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = FROM_INPUT, **_: Any) -> str:
        """Changes when the chosen file is replaced."""
        return state_of(lora_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora_name: str,
        prompts: str,
        negative: str,
        lora_strengths: str,
        guidances: str,
        img2img_strengths: str,
        steps: int,
        sampler_name: str,
        scheduler: str,
        seed: int,
        width: int,
        height: int,
        add_trigger_words: bool = True,
        lora: Any = None,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Paint the grid."""
        with canvas_errors():
            require(model=model, clip=clip, vae=vae)
            allow(image=image)
            path = chosen_lora(lora_name, lora)
            info = inspect(path)
            words = for_prompt(info.trigger_words) if add_trigger_words else ""
            texts = [with_trigger_words(line, words) for line in lines(prompts)] or [words]
            strengths = [0.0, *(s for s in numbers(lora_strengths, what="lora_strengths", low=-10, high=10) if s)]
            guides = numbers(guidances, what="guidances", low=0, high=100)
            source = None if image is None else image[:1]
            moves = [1.0] if source is None else numbers(img2img_strengths, what="img2img_strengths", low=0, high=1)
            columns = [(guidance, move) for guidance in guides for move in moves]
            latent = core_nodes.empty_latent(width, height, 1) if source is None else core_nodes.encode_image(vae, source)
            easel = Easel(model, clip, vae, latent, negative, seed, steps, sampler_name, scheduler, made_for(info))
            settings = [[Setting(path, strength, guidance, move) for guidance, move in columns] for strength in strengths]
            painted = paint(easel, cls.hidden.unique_id, texts, settings)
            labels = [_label(guidance, None if source is None else move) for guidance, move in columns]
            rows = ["no LoRA" if not strength else f"LoRA {strength:g}" for strength in strengths]
            before = None if source is None else to_pil(core_nodes.crop_to_latent(vae, source)[0])
            return hang(texts, painted, rows, labels, before)


def _label(guidance: float, move: float | None) -> str:
    return f"guidance {guidance:g}" if move is None else f"guidance {guidance:g} · strength {move:g}"
