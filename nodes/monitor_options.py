"""Monitor Options: held-out images, whose loss shows whether a training learns or only memorises."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared import places
from .shared.failures import readable
from .shared.options import earlier, extended
from .shared.schema import number, result, schema, setting
from .shared.types import TRAIN_OPTIONS


class MonitorOptionsNode(io.ComfyNode):
    """Schema and call of Monitor Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is the trainer's own."""
        return schema(
            "MonitorOptions",
            "Monitor Options",
            "Shows whether the LoRA learns or only memorises: a few pictures are held out and measured. Connect it to Train LoRA, "
            "or to another options node.",
            [
                number(
                    "held_out",
                    "This share of the pictures is not trained on but measured, to see what is learned; try 0.1. 0 is none.",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                ),
                setting(io.Int, "most_held_out", "At most so many pictures are held out.", default=16, min=1, max=10_000),
                setting(io.Int, "measure_every", "They are measured after every so many epochs.", default=1, min=1, max=10_000),
                setting(
                    io.Int,
                    "noise_levels",
                    "At how many levels of noise each of them is measured. More is steadier, and slower.",
                    default=4,
                    min=1,
                    max=100,
                ),
                setting(
                    io.Int,
                    "held_out_seed",
                    "The dice that choose the pictures and their noise. Keep it, to compare runs.",
                    default=42,
                    min=0,
                    max=0xFFFF_FFFF,
                    control_after_generate=False,
                ),
                earlier(),
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["validation loss", "overfitting", "validation split"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with readable():
            return extended(options, places.sections(places.MONITOR_OPTIONS, widgets))
