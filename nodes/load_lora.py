"""Load LoRA: apply a LoRA to a model and report how many of its keys were used."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from .shared.browser import show_text, show_used_lora
from .shared.failures import canvas_errors, failures_reported
from .shared.files.folders import listed_lora, lora_names
from .shared.inputs.prompts import for_prompt
from .shared.inputs.socket_types import LORA, LORA_INPUT, menu_or_socket
from .shared.inputs.sockets import require
from .shared.loras.apply_lora import apply_lora
from .shared.loras.chosen_lora import chosen_lora, inspect, made_for, menu_state
from .shared.loras.sampling_warning import LATER, remember_lora, sampling_warning
from .shared.schema import field, result, schema

log = logging.getLogger("animelora")


class LoadLora(io.ComfyNode):
    """Schema and call of Load LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "LoadLora",
            "Load LoRA",
            "Applies a LoRA from your list, or directly from Train LoRA, to a model. Outputs its trigger words, "
            "shows how many of its keys were used, and stops when it was made for another kind of model.",
            [
                field(io.Model, "model", "The model to apply the LoRA to."),
                field(io.Clip, "clip", "The text encoder to apply the LoRA to."),
                menu_or_socket("lora_name", "A LoRA from models/loras.", lora_names()),
                field(
                    io.Float,
                    "strength_model",
                    "How strongly the LoRA changes the image. 1 is as trained, 0 is off.",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                ),
                field(
                    io.Float,
                    "strength_clip",
                    "How strongly the LoRA changes how the prompt is understood, if it trained the text encoder.",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                ),
                field(LORA, "lora", "A LoRA from Train LoRA. It takes precedence over the list.", optional=True),
            ],
            [
                result(io.Model, "model", "The model with the LoRA applied."),
                result(io.Clip, "clip", "The text encoder with the LoRA applied."),
                result(io.String, "trigger_words", "The words that activate the LoRA, separated by commas."),
            ],
            search=["lora loader", "apply lora", "trigger words"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = LORA_INPUT, **_: Any) -> str:
        """Changes when the chosen file is replaced, so that a LoRA that was trained again under the same name is read again."""
        return menu_state(lora_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        lora_name: str = LORA_INPUT,
        strength_model: float = 1.0,
        strength_clip: float = 1.0,
        lora: Any = None,
    ) -> io.NodeOutput:
        """Apply the LoRA."""
        with canvas_errors(), failures_reported(cls.hidden.unique_id, {"lora_name": lora_name}):
            require(model=model, clip=clip)
            path = chosen_lora(lora_name, lora)
            info = inspect(path)
            applied = apply_lora(model, clip, path, strength_model, strength_clip, made_for=made_for(info))
            warning = sampling_warning(path.name, info, model)
            show_used_lora(cls.hidden.unique_id, listed_lora(path))
            if strength_model:
                remember_lora(applied.model, path.name, info)
            show_text(cls.hidden.unique_id, f"{applied.summary()}\n{warning}{LATER}" if warning else applied.summary())
            if applied.unknown:
                log.warning("%s: these keys were not used: %s", path.name, ", ".join(applied.unknown))
            if warning:
                log.warning("%s", warning)
            log.info("%s: %s", path.name, applied.summary())
            return io.NodeOutput(applied.model, applied.clip, for_prompt(info.trigger_words))
