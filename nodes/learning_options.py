"""Learning Options: details of optimizer, schedule, loss and noise."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.inputs.socket_types import TRAIN_OPTIONS
from .shared.options import earlier, extended_options
from .shared.schema import inputs, result, schema
from .shared.widgets.training_widgets import LEARNING_OPTIONS_WIDGETS


class LearningOptionsNode(io.ComfyNode):
    """Schema and call of Learning Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            LEARNING_OPTIONS_WIDGETS.node,
            LEARNING_OPTIONS_WIDGETS.title,
            "Details of optimizer, schedule, loss and noise. Connect it to Train LoRA, or to another options node.",
            inputs(LEARNING_OPTIONS_WIDGETS, options=earlier()),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["betas", "optimizer arguments", "huber", "debiased", "restarts"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with canvas_errors():
            return extended_options(options, LEARNING_OPTIONS_WIDGETS.settings(widgets))
