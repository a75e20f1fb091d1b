"""LoRA Stack: several LoRAs in one node, each with a switch and strengths, applied from top to bottom."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from .shared.browser import show_text
from .shared.failures import canvas_errors
from .shared.files.folders import lora_names, lora_path
from .shared.inputs.prompts import for_prompt
from .shared.inputs.sockets import require
from .shared.loras.apply_lora import apply_lora
from .shared.loras.cards import file_states
from .shared.loras.chosen_lora import inspect, made_for
from .shared.loras.sampling_warning import LATER, remember_lora, sampling_warning
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
            "Applies several LoRAs to a model, one after the other. Each has a switch, strengths and a card. "
            "Outputs the trigger words of those that are switched on.",
            [
                field(io.Model, "model", "The model to apply the LoRAs to."),
                field(io.Clip, "clip", "The text encoder to apply the LoRAs to."),
                field(
                    io.String,
                    "loras",
                    "The LoRAs from top to bottom, as a JSON list of objects with on, name, strength and, if it differs, clip.",
                    default="[]",
                    widget="ANIMELORA_LORAS",  # web/lora.js
                ),
            ],
            [
                result(io.Model, "model", "The model with the LoRAs applied."),
                result(io.Clip, "clip", "The text encoder with the LoRAs applied."),
                result(io.String, "trigger_words", "The trigger words of the LoRAs that are switched on, separated by commas."),
            ],
            search=["lora loader", "several loras", "multi lora", "power lora"],
        )

    @classmethod
    def validate_inputs(cls, loras: Any) -> bool | str:
        """Refuses an invalid list before anything is queued."""
        if loras is None:  # a linked input is known only at run time
            return True
        try:
            read_rows(loras, lora_names())
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, loras: Any = None, **_: Any) -> str:
        """Changes when the file of a row that is switched on, or a file beside it, is replaced."""
        if loras is None:
            return ""
        return str([file_states(lora_path(row.name)) for row in read_rows(loras, lora_names()) if row.on])

    @classmethod
    def execute(cls, model: Any, clip: Any, loras: str = "[]") -> io.NodeOutput:
        """Apply every row that is switched on."""
        with canvas_errors():
            require(model=model, clip=clip)
            words: list[str] = []
            reports: list[str] = []
            for row in read_rows(loras, lora_names()):
                if not row.on:
                    continue
                path = lora_path(row.name)
                info = inspect(path)
                applied = apply_lora(model, clip, path, row.strength, row.clip, made_for=made_for(info))
                model, clip = applied.model, applied.clip
                words += info.trigger_words
                reports.append(f"{path.name}: {applied.summary()}")
                if row.strength:
                    remember_lora(model, path.name, info)
                if warning := sampling_warning(path.name, info, model):
                    reports.append(warning + LATER)
                    log.warning("%s", warning)
                if applied.unknown:
                    log.warning("%s: these keys were not used: %s", path.name, ", ".join(applied.unknown))
            show_text(cls.hidden.unique_id, "\n".join(reports) or "no LoRA is on")
            return io.NodeOutput(model, clip, for_prompt(words))
