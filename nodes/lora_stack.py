"""LoRA Stack: several LoRAs in one node, each with its switch and strengths, applied from top to bottom."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from .load_lora import inspect, made_for
from .shared.browser import show_text
from .shared.failures import canvas_errors
from .shared.files.folders import lora_names, lora_path
from .shared.inputs.prompts import for_prompt
from .shared.inputs.sockets import require
from .shared.loras.apply_lora import patch
from .shared.loras.cards import states
from .shared.loras.stack_rows import read_rows
from .shared.schema import field, result, schema

log = logging.getLogger("animelora")


class LoraStack(io.ComfyNode):
    """Schema and call of LoRA Stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "LoraStack",
            "LoRA Stack",
            "Adds several LoRAs to a model, one after the other. Each has a switch, its strengths and its card; "
            "gives the trigger words of those that are on.",
            [
                field(io.Model, "model", "The model that the LoRAs are added to."),
                field(io.Clip, "clip", "The text encoder that the LoRAs are added to."),
                field(
                    io.String,
                    "loras",
                    "The LoRAs from top to bottom, as a list in JSON with on, name, strength and, if it differs, clip.",
                    default="[]",
                    widget="ANIMELORA_LORAS",  # web/lora.js
                ),
            ],
            [
                result(io.Model, "model", "The model with the LoRAs on it."),
                result(io.Clip, "clip", "The text encoder with the LoRAs on it."),
                result(io.String, "trigger_words", "The trigger words of the LoRAs that are on, separated by commas."),
            ],
            search=["lora loader", "several loras", "multi lora", "power lora"],
        )

    @classmethod
    def validate_inputs(cls, loras: Any) -> bool | str:
        """Refuses a list that could not be executed before anything is queued."""
        if loras is None:  # linked: known only when it runs
            return True
        try:
            read_rows(loras, lora_names())
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, loras: Any = None, **_: Any) -> str:
        """Changes when the file behind a row that is on, or a note beside it, is replaced."""
        if loras is None:
            return ""
        return str([states(lora_path(row.name)) for row in read_rows(loras, lora_names()) if row.on])

    @classmethod
    def execute(cls, model: Any, clip: Any, loras: str = "[]") -> io.NodeOutput:
        """Patch model and text encoder with every row that is on."""
        with canvas_errors():
            require(model=model, clip=clip)
            words: list[str] = []
            told: list[str] = []
            for row in read_rows(loras, lora_names()):
                if not row.on:
                    continue
                path = lora_path(row.name)
                info = inspect(path)
                patched = patch(model, clip, path, row.strength, row.clip, made_for=made_for(info))
                model, clip = patched.model, patched.clip
                words += info.trigger_words
                told.append(f"{path.name}: {patched.summary()}")
                if patched.unknown:
                    log.warning("%s: these keys were not used: %s", path.name, ", ".join(patched.unknown))
            show_text(cls.hidden.unique_id, "\n".join(told) or "no LoRA is on")
            return io.NodeOutput(model, clip, for_prompt(words))
