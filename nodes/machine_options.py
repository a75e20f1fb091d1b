"""Machine Options: how the computer is used, which changes memory and speed and hardly the LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config.run_config import ATTENTIONS, BASE_PRECISIONS, MEMORY_PRESETS
from .shared import places
from .shared.failures import readable
from .shared.options import earlier, extended
from .shared.schema import result, schema, setting
from .shared.types import TRAIN_OPTIONS


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
                setting(
                    io.Combo,
                    "memory",
                    "Size of the graphics card that training shall fit: fills in what saves memory and was left as it comes. "
                    "auto looks itself; none is fastest.",
                    options=list(MEMORY_PRESETS),
                    default="none",
                ),
                setting(
                    io.Combo,
                    "base_precision",
                    "How the base model is kept while it trains: int8 and fp8 halve its memory, nf4 quarters it (needs bitsandbytes). "
                    "same loses nothing.",
                    options=list(BASE_PRECISIONS),
                    default="same",
                ),
                setting(
                    io.Int,
                    "micro_batch_size",
                    "Pictures that go through the model at once. Fewer need less memory and teach the same; 0 takes the whole batch.",
                    default=0,
                    min=0,
                    max=1024,
                ),
                setting(
                    io.Combo,
                    "attention",
                    "What computes attention: auto takes xformers where it really works, else torch's own.",
                    options=list(ATTENTIONS),
                    default="auto",
                ),
                setting(
                    io.Boolean,
                    "compile",
                    "Compiles the model: slow at the start, faster in long runs. Where that fails, training goes on without it.",
                    default=False,
                ),
                setting(
                    io.Combo,
                    "channels_last",
                    "Order in which pictures lie in memory. auto takes what is faster on your card; the result hardly differs.",
                    options=["auto", "on", "off"],
                    default="auto",
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
