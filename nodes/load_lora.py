"""Load LoRA: puts a LoRA on a model and says what became of its keys."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from .shared.browser import show_text, show_used_lora
from .shared.failures import canvas_errors
from .shared.files.folders import listed_lora, lora_names, lora_path
from .shared.inputs.prompts import for_prompt
from .shared.inputs.socket_types import LORA, as_lora
from .shared.inputs.sockets import require
from .shared.loras.apply_lora import patch
from .shared.loras.cards import states
from .shared.schema import field, result, schema

log = logging.getLogger("animelora")

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
    def fingerprint_inputs(cls, lora_name: str = FROM_INPUT, **_: Any) -> str:
        """Changes when the chosen file is replaced, so that a LoRA trained again under its old name is read again."""
        return state_of(lora_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        lora_name: str = FROM_INPUT,
        strength_model: float = 1.0,
        strength_clip: float = 1.0,
        lora: Any = None,
    ) -> io.NodeOutput:
        """Patch model and text encoder."""
        with canvas_errors():
            require(model=model, clip=clip)
            path = chosen_lora(lora_name, lora)
            info = inspect(path)
            patched = patch(model, clip, path, strength_model, strength_clip, made_for=made_for(info))
            show_text(cls.hidden.unique_id, patched.summary())
            show_used_lora(cls.hidden.unique_id, listed_lora(path))
            if patched.unknown:
                log.warning("%s: these keys were not used: %s", path.name, ", ".join(patched.unknown))
            log.info("%s: %s", path.name, patched.summary())
            return io.NodeOutput(patched.model, patched.clip, for_prompt(info.trigger_words))


def state_of(name: str) -> str:
    """Changes when the file behind a menu's entry, or a note beside it, is replaced; empty for a LoRA that comes through the socket."""
    return "" if name == FROM_INPUT else str(states(lora_path(name)))


def chosen_lora(name: str, connected: Any) -> Path:
    """The file of a LORA socket, or of a list entry when nothing is connected."""
    if connected is not None:
        path = Path(as_lora(connected).path)
        if not path.is_file():
            raise UserError(
                f"The LoRA {path.name} is no longer where Train LoRA put it.",
                "Queue again after changing a setting of Train LoRA, or choose another file.",
                kind="lora",
            )
        return path
    if name == FROM_INPUT:
        raise UserError("No LoRA was chosen.", "Choose one from the list, or connect the lora output of Train LoRA.", kind="lora")
    return lora_path(name)


def inspect(path: Path) -> Any:
    """What a LoRA file says about itself, with the trigger words that its card shows. Imported late, because it reads files with torch."""
    from ..trainer.lorafile import called_by, inspect_lora

    info = inspect_lora(path)
    return replace(info, trigger_words=called_by(info))


def made_for(info: Any) -> str:
    """The kind of model that a LoRA was made for, in words; empty when the file does not tell."""
    from ..trainer.lorafile import FAMILY_TITLES

    return "" if info.family == "unknown" else str(FAMILY_TITLES.get(info.family, info.family))
