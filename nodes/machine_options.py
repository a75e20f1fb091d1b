"""Machine Options: memory and speed, which hardly change the LoRA, and logs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.inputs.socket_types import TRAIN_OPTIONS
from .shared.options import earlier, extended_options
from .shared.schema import inputs, result, schema
from .shared.widgets.training_widgets import MACHINE_OPTIONS_WIDGETS


class MachineOptionsNode(io.ComfyNode):
    """Schema and call of Machine Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            MACHINE_OPTIONS_WIDGETS.node,
            MACHINE_OPTIONS_WIDGETS.title,
            "How training uses your computer: memory, speed and logs. Connect it to Train LoRA, or to another options node.",
            inputs(MACHINE_OPTIONS_WIDGETS, options=earlier()),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["device", "tensorboard", "vram", "low memory", "multi gpu"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with canvas_errors():
            return extended_options(options, MACHINE_OPTIONS_WIDGETS.settings(widgets))
