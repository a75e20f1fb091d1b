"""Monitor Options: held-out images, whose loss shows whether the LoRA learns or only memorises."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.inputs.socket_types import TRAIN_OPTIONS
from .shared.options import earlier, extended_options
from .shared.schema import inputs, result, schema
from .shared.widgets.training_widgets import MONITOR_OPTIONS_WIDGETS


class MonitorOptionsNode(io.ComfyNode):
    """Schema and call of Monitor Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            MONITOR_OPTIONS_WIDGETS.node,
            MONITOR_OPTIONS_WIDGETS.title,
            "Shows whether the LoRA learns or only memorises: a few images are held out and measured. Connect it to Train LoRA, "
            "or to another options node.",
            inputs(MONITOR_OPTIONS_WIDGETS, options=earlier()),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["validation loss", "overfitting", "validation split"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with canvas_errors():
            return extended_options(options, MONITOR_OPTIONS_WIDGETS.settings(widgets))
