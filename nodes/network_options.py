"""Network Options: rank and alpha part by part, text encoder training, and a LoRA to continue from."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.core.files.reading import file_stamp
from .shared.failures import canvas_errors
from .shared.files.folders import lora_names, lora_path
from .shared.inputs.socket_types import LORA, TRAIN_OPTIONS
from .shared.loras.chosen_lora import chosen_lora
from .shared.options import earlier, extended_options
from .shared.schema import field, inputs, result, schema
from .shared.widgets.training_widgets import NETWORK_OPTIONS_WIDGETS, NO_LORA


class NetworkOptionsNode(io.ComfyNode):
    """Schema and call of Network Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            NETWORK_OPTIONS_WIDGETS.node,
            NETWORK_OPTIONS_WIDGETS.title,
            "Size of the LoRA part by part, text encoder training, and a LoRA to continue from. Connect it to Train LoRA, or to another "
            "options node.",
            inputs(
                NETWORK_OPTIONS_WIDGETS,
                continue_from=[NO_LORA, *lora_names()],
                lora=field(LORA, "lora", "Continues training this LoRA, fresh from Train LoRA. Wins over continue_from.", optional=True),
                options=earlier(),
            ),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["block weights", "resume lora", "continue training", "rank per block"],
        )

    @classmethod
    def fingerprint_inputs(cls, continue_from: str = NO_LORA, **_: Any) -> str:
        """Changes when the LoRA to continue from is replaced."""
        if continue_from == NO_LORA:
            return ""
        return file_stamp(lora_path(continue_from))

    @classmethod
    def execute(cls, options: Any = None, lora: Any = None, continue_from: str = NO_LORA, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with canvas_errors():
            if lora is not None or continue_from != NO_LORA:
                widgets["continue_from"] = str(chosen_lora(continue_from, lora))
            return extended_options(options, NETWORK_OPTIONS_WIDGETS.settings(widgets))
