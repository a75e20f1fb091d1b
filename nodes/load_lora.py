"""Load LoRA: puts a LoRA on a model and says what became of its keys."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .folders import lora_names
from .schema import field, result, schema
from .types import LORA

FROM_INPUT = "(lora input)"


class LoadLora(io.ComfyNode):
    """Schema and call of Load LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "LoadLora",
            "Load LoRA",
            "Adds a LoRA to a model: from your list, or straight from Train LoRA. Gives its trigger words, "
            "says how many of its keys were used, and stops when it was made for another kind of model.",
            [
                field(io.Model, "model", "The model that the LoRA is added to."),
                field(io.Clip, "clip", "The text encoder that the LoRA is added to."),
                field(
                    io.Combo,
                    "lora_name",
                    "A LoRA from models/loras. Not used while something is connected to the lora input.",
                    options=[FROM_INPUT, *lora_names()],
                    default=FROM_INPUT,
                ),
                field(
                    io.Float,
                    "strength_model",
                    "How strongly the LoRA changes the picture. 1 is as trained, 0 is off.",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                ),
                field(
                    io.Float,
                    "strength_clip",
                    "How strongly the LoRA changes the reading of the prompt, if it was trained to do so.",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                ),
                field(LORA, "lora", "A LoRA fresh from Train LoRA. It wins over the list.", optional=True),
            ],
            [
                result(io.Model, "model", "The model with the LoRA on it."),
                result(io.Clip, "clip", "The text encoder with the LoRA on it."),
                result(io.String, "trigger_words", "The words that call up what the LoRA learnt, separated by commas."),
            ],
            search=["lora loader", "apply lora", "trigger words"],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Patch model and text encoder."""
        raise NotImplementedError
