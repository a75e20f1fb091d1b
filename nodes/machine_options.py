"""Machine Options: how the computer is used, which changes memory and speed and hardly the LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import places
from .failures import readable
from .options import earlier, extended
from .schema import result, schema, setting
from .types import TRAIN_OPTIONS


class MachineOptionsNode(io.ComfyNode):
    """Schema and call of Machine Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is the trainer's own."""
        return schema(
            "MachineOptions",
            "Machine Options",
            "How training uses your computer: memory, speed and logs. Connect it to Train LoRA, or to another options node.",
            [
                setting(
                    io.Combo,
                    "device",
                    "What computes: auto takes the graphics card where there is one. cpu is slow, and leaves the card free.",
                    options=["auto", "cpu", "cuda"],
                    default="auto",
                ),
                setting(
                    io.Boolean,
                    "tensorboard",
                    "Writes the curves for TensorBoard too, into the run's folder.",
                    default=True,
                ),
                setting(
                    io.Int,
                    "prune_days",
                    "Saved states of runs that finished so many days ago are deleted after a run, never a LoRA. 0 keeps all.",
                    default=30,
                    min=0,
                    max=36_500,
                ),
                earlier(),
                setting(
                    io.Int,
                    "gpus",
                    "How many graphics cards share each step: the LoRA is the same, and sooner done. 0 takes all that there are.",
                    default=1,
                    min=0,
                    max=1024,
                ),
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["device", "tensorboard", "vram", "low memory", "multi gpu"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with readable():
            return extended(options, places.sections(places.MACHINE_OPTIONS, widgets))
