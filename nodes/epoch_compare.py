"""Epoch Compare: the LoRA as it was at each saved step of a run, at several strengths, in one labelled picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.runs.saved_lora import require_undamaged
from .load_lora import inspect, made_for
from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.saved_steps import FROM_INPUT, chosen_run, labels, run_names, run_state, saved_loras, wanted
from .shared.grids.render_grid import Easel, Setting, hang, paint, painting_fields, prompt_fields
from .shared.inputs.prompts import for_prompt, lines, numbers, with_trigger_words
from .shared.inputs.socket_types import LORA
from .shared.inputs.sockets import require
from .shared.schema import field, result, schema


class EpochCompare(io.ComfyNode):
    """Schema and call of Epoch Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "EpochCompare",
            "Epoch Compare",
            "Paints the same prompts with the LoRA as it was at each saved step of a training run, at several strengths, "
            "and puts them in one labelled grid, so that you can pick the best moment.",
            [
                field(io.Model, "model", "The model without the LoRA (straight from the loader)."),
                field(io.Clip, "clip", "The text encoder without the LoRA."),
                field(io.Vae, "vae", "The VAE of the model."),
                field(
                    io.Combo,
                    "run",
                    "The training run to look at. Not used while something is connected to the lora input.",
                    options=[FROM_INPUT, *run_names()],
                    default=FROM_INPUT,
                ),
                *prompt_fields(),
                field(
                    io.String,
                    "saved_steps",
                    "Which saved steps of the training to compare, separated by commas: one row each. Empty takes all.",
                    default="",
                ),
                field(
                    io.String,
                    "lora_strengths",
                    "LoRA strengths to compare, separated by commas: one column each.",
                    default="0.6, 0.8, 1.0",
                ),
                field(io.Float, "guidance", "How closely the prompt is followed (CFG).", default=7.5, min=0.0, max=100.0, step=0.1),
                *painting_fields(),
                field(io.Int, "width", "Width of each picture.", default=512, min=64, max=4096, step=8),
                field(io.Int, "height", "Height of each picture.", default=512, min=64, max=4096, step=8),
                field(
                    io.Boolean,
                    "add_trigger_words",
                    "Puts the LoRA's trigger words in front of every prompt that does not have them, in the row without the LoRA, too.",
                    default=True,
                ),
                field(LORA, "lora", "A LoRA fresh from Train LoRA: its run is compared. It wins over the list.", optional=True),
            ],
            [
                result(io.Image, "grid", "All pictures in one, with labels."),
                result(io.Image, "images", "The pictures alone, row by row."),
            ],
            search=["xy plot", "epoch grid", "compare checkpoints", "overtraining"],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = FROM_INPUT, **_: Any) -> str:
        """Changes when the chosen run has saved more."""
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
        """Paint the grid."""
        with canvas_errors():
            require(model=model, clip=clip, vae=vae)
            folder = chosen_run(run, lora)
            saved = wanted(saved_loras(folder), saved_steps)
            for path in saved.values():
                require_undamaged(path)
            first = next(iter(saved.values()))
            info = inspect(first)
            words = for_prompt(info.trigger_words) if add_trigger_words else ""
            texts = list(dict.fromkeys(with_trigger_words(line, words) for line in lines(prompts))) or [words]
            strengths = numbers(lora_strengths, what="lora_strengths", low=-10, high=10)
            rows = [[Setting(first, 0.0, guidance) for _ in strengths]]
            rows += [[Setting(path, strength, guidance) for strength in strengths] for path in saved.values()]
            latent = core_nodes.empty_latent(width, height, 1)
            easel = Easel(model, clip, vae, latent, negative, seed, steps, sampler_name, scheduler, made_for(info))
            painted = paint(easel, cls.hidden.unique_id, texts, rows)
            named = ["no LoRA", *labels(folder, list(saved))]
            return hang(texts, painted, named, [f"LoRA {strength:g}" for strength in strengths])
