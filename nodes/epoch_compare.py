"""Epoch Compare: the LoRAs of the saved steps of a run at several strengths in one labelled grid."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.runs.saved_lora import require_undamaged_lora
from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.saved_steps import chosen_run, labels, run_names, run_state, saved_loras, select_steps
from .shared.grids.render_grid import CellSettings, GridSettings, model_fields, prompt_fields, render_grid, sample_cells, sampling_fields
from .shared.inputs.prompts import for_prompt, lines, numbers, with_trigger_words
from .shared.inputs.socket_types import LORA, LORA_INPUT, menu_or_socket
from .shared.inputs.sockets import require
from .shared.loras.chosen_lora import inspect, made_for
from .shared.loras.sampling_warning import sampling_warning
from .shared.schema import field, result, schema


class EpochCompare(io.ComfyNode):
    """Schema and call of Epoch Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "EpochCompare",
            "Epoch Compare",
            "Generates images with the LoRA of each saved step of a training run, at several strengths, "
            "and arranges them in a labelled grid, so that you can pick the best step.",
            [
                *model_fields(),
                menu_or_socket("run", "The training run.", run_names()),
                *prompt_fields(),
                field(
                    io.String,
                    "saved_steps",
                    "The saved steps to compare, separated by commas. Each is a row. If empty, all are used.",
                    default="",
                ),
                field(
                    io.String,
                    "lora_strengths",
                    "LoRA strengths, separated by commas. Each is a column.",
                    default="0.6, 0.8, 1.0",
                ),
                field(
                    io.Float,
                    "guidance",
                    "How closely the images follow the prompt (CFG). For Anima: 4.",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                ),
                *sampling_fields(),
                field(io.Int, "width", "Width of each image.", default=512, min=64, max=4096, step=8),
                field(io.Int, "height", "Height of each image.", default=512, min=64, max=4096, step=8),
                field(
                    io.Boolean,
                    "add_trigger_words",
                    "Puts the LoRA's trigger words in front of every prompt that lacks them, also in the row without the LoRA.",
                    default=True,
                ),
                field(LORA, "lora", "A LoRA from Train LoRA. Its run takes precedence over the list.", optional=True),
            ],
            [
                result(io.Image, "grid", "All images in one labelled grid."),
                result(io.Image, "images", "The images, row by row."),
            ],
            search=["xy plot", "epoch grid", "compare checkpoints", "overtraining"],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = LORA_INPUT, **_: Any) -> str:
        """Changes when the chosen run saves another LoRA."""
        return run_state(run)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        run: str,
        prompts: str,
        negative: str,
        saved_steps: str,
        lora_strengths: str,
        guidance: float,
        steps: int,
        sampler_name: str,
        scheduler: str,
        seed: int,
        width: int,
        height: int,
        add_trigger_words: bool = True,
        lora: Any = None,
    ) -> io.NodeOutput:
        """Generate the grid."""
        with canvas_errors():
            require(model=model, clip=clip, vae=vae)
            folder = chosen_run(run, lora)
            saved = select_steps(saved_loras(folder), saved_steps)
            for path in saved.values():
                require_undamaged_lora(path)
            first = next(iter(saved.values()))
            info = inspect(first)
            words = for_prompt(info.trigger_words) if add_trigger_words else ""
            texts = list(dict.fromkeys(with_trigger_words(line, words) for line in lines(prompts))) or [words]
            strengths = numbers(lora_strengths, what="LoRA strengths", low=-10, high=10)
            rows = [[CellSettings(first, 0.0, guidance) for _ in strengths]]
            rows += [[CellSettings(path, strength, guidance) for strength in strengths] for path in saved.values()]
            latent = core_nodes.empty_latent(width, height, 1)
            warning = sampling_warning(first.name, info, model)
            shared = GridSettings(model, clip, vae, latent, negative, seed, steps, sampler_name, scheduler, made_for(info), warning)
            images = sample_cells(shared, cls.hidden.unique_id, texts, rows)
            named = ["no LoRA", *labels(folder, list(saved))]
            return render_grid(texts, images, named, [f"LoRA {strength:g}" for strength in strengths])
