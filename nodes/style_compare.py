"""Style Compare: strengths, guidances and prompts side by side in one labelled grid."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.folders import lora_names
from .shared.files.images import to_pil
from .shared.grids.render_grid import CellSettings, GridSettings, model_fields, prompt_fields, render_grid, sample_cells, sampling_fields
from .shared.inputs.prompts import for_prompt, lines, numbers, with_trigger_words
from .shared.inputs.socket_types import LORA, LORA_INPUT, menu_or_socket
from .shared.inputs.sockets import allow, require
from .shared.loras.chosen_lora import chosen_lora, inspect, made_for, menu_state
from .shared.loras.sampling_warning import sampling_warning
from .shared.schema import field, result, schema


class StyleCompare(io.ComfyNode):
    """Schema and call of Style Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "StyleCompare",
            "Style Compare",
            "Generates an image for every combination of LoRA strength, guidance and prompt, and arranges them in a labelled grid "
            "with a row without the LoRA for comparison.",
            [
                *model_fields(),
                menu_or_socket("lora_name", "The LoRA to compare.", lora_names()),
                *prompt_fields(),
                field(
                    io.String,
                    "lora_strengths",
                    "LoRA strengths, separated by commas. Each is a row, below a row without the LoRA.",
                    default="0.6, 0.8, 1.0",
                ),
                field(
                    io.String,
                    "guidances",
                    "Guidance (CFG) values, separated by commas. Each is a column. For Anima: about 4.",
                    default="5, 7.5, 10",
                ),
                field(
                    io.String,
                    "img2img_strengths",
                    "With an image connected: how much it changes (denoise), separated by commas. "
                    "Each guidance gets a column for each value.",
                    default="0.65, 0.8",
                ),
                *sampling_fields(),
                field(io.Int, "width", "Width of each image when no image is connected.", default=512, min=64, max=4096, step=8),
                field(io.Int, "height", "Height of each image when no image is connected.", default=512, min=64, max=4096, step=8),
                field(
                    io.Boolean,
                    "add_trigger_words",
                    "Puts the LoRA's trigger words in front of every prompt that lacks them, also in the row without the LoRA.",
                    default=True,
                ),
                field(LORA, "lora", "A LoRA from Train LoRA. It takes precedence over the list.", optional=True),
                field(
                    io.Image,
                    "image",
                    "A photo to transform in every cell. Without it, images are generated from the prompt alone.",
                    optional=True,
                ),
            ],
            [
                result(io.Image, "grid", "All images in one labelled grid."),
                result(io.Image, "images", "The images, row by row."),
            ],
            search=["xy plot", "lora grid", "compare strengths", "compare guidance"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = LORA_INPUT, **_: Any) -> str:
        """Changes when the chosen file is replaced."""
        return menu_state(lora_name)

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
        """Generate the grid."""
        with canvas_errors():
            require(model=model, clip=clip, vae=vae)
            allow(image=image)
            path = chosen_lora(lora_name, lora)
            info = inspect(path)
            words = for_prompt(info.trigger_words) if add_trigger_words else ""
            texts = [with_trigger_words(line, words) for line in lines(prompts)] or [words]
            strengths = [0.0, *(s for s in numbers(lora_strengths, what="LoRA strengths", low=-10, high=10) if s)]
            guidance_values = numbers(guidances, what="guidance values", low=0, high=100)
            source = None if image is None else image[:1]
            denoises = [1.0] if source is None else numbers(img2img_strengths, what="img2img strengths", low=0, high=1)
            columns = [(guidance, denoise) for guidance in guidance_values for denoise in denoises]
            latent = core_nodes.empty_latent(width, height, 1) if source is None else core_nodes.encode_image(vae, source)
            warning = sampling_warning(path.name, info, model)
            shared = GridSettings(model, clip, vae, latent, negative, seed, steps, sampler_name, scheduler, made_for(info), warning)
            settings = [[CellSettings(path, strength, guidance, denoise) for guidance, denoise in columns] for strength in strengths]
            images = sample_cells(shared, cls.hidden.unique_id, texts, settings)
            labels = [_label(guidance, None if source is None else denoise) for guidance, denoise in columns]
            rows = ["no LoRA" if not strength else f"LoRA {strength:g}" for strength in strengths]
            before = None if source is None else to_pil(core_nodes.crop_to_latent(vae, source)[0])
            return render_grid(texts, images, rows, labels, before)


def _label(guidance: float, denoise: float | None) -> str:
    return f"guidance {guidance:g}" if denoise is None else f"guidance {guidance:g} · strength {denoise:g}"
