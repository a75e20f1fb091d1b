"""Network Options: what the LoRA is made of, part by part, and which LoRA it goes on from."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from ..trainer.core.files.reading import file_stamp
from .load_lora import chosen_lora
from .shared import places
from .shared.failures import readable
from .shared.folders import lora_names, lora_path
from .shared.options import earlier, extended
from .shared.prompts import lines
from .shared.schema import field, number, result, schema, setting
from .shared.types import LORA, TRAIN_OPTIONS

NOTHING = "(nothing)"


class NetworkOptionsNode(io.ComfyNode):
    """Schema and call of Network Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is the trainer's own."""
        return schema(
            "NetworkOptions",
            "Network Options",
            "What the LoRA is made of, part by part, and which LoRA it goes on from. Connect it to Train LoRA, or to another options node.",
            [
                setting(
                    io.Combo,
                    "continue_from",
                    "A LoRA that training goes on from, of any tool. Rank and targets must be that LoRA's. (nothing) starts a new one.",
                    options=[NOTHING, *lora_names()],
                    default=NOTHING,
                ),
                setting(
                    io.String,
                    "block_ranks",
                    "Other ranks for parts of the model, one a line: mid_block = 4, or up_blocks.1 = 32. 0 leaves a part untrained.",
                    default="",
                    multiline=True,
                ),
                setting(
                    io.String,
                    "block_alphas",
                    "Other alphas for parts of the model, one a line: up_blocks.1 = 16. The other parts have the alpha of Train LoRA.",
                    default="",
                    multiline=True,
                ),
                setting(io.Boolean, "train_unet", "Trains the part that paints. Off, only the text encoder learns.", default=True),
                setting(
                    io.Boolean,
                    "train_text_encoder",
                    "Trains the part that reads the prompt too: helps a new name or word, and may make it forget others.",
                    default=False,
                ),
                number(
                    "text_encoder_lr",
                    "Size of the text encoder's learning steps. 0 takes half of Train LoRA's.",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                ),
                number(
                    "text_encoder_share",
                    "The text encoder learns for this share of the run and then stays as it is; 0.5 is the first half.",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                ),
                setting(
                    io.Int,
                    "clip_skip",
                    "Which layer of the text encoder is read, from the end. 0 is the model's own; many anime models on SD 1.5 want 2.",
                    default=0,
                    min=0,
                    max=12,
                ),
                setting(
                    io.Int,
                    "max_tokens",
                    "How much of a long caption is read, in pieces of 75: 75, 150 or 225.",
                    default=75,
                    min=75,
                    max=225,
                    step=75,
                ),
                number(
                    "max_norm",
                    "Keeps every layer's change below this size, so that none outgrows the others; 1 is usual. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                ),
                field(LORA, "lora", "A LoRA that training goes on from, fresh from Train LoRA. It wins over the list.", optional=True),
                earlier(),
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["block weights", "resume lora", "continue training", "rank per block"],
        )

    @classmethod
    def fingerprint_inputs(cls, continue_from: str = NOTHING, **_: Any) -> str:
        """Changes when the LoRA to go on from is replaced."""
        if continue_from == NOTHING:
            return ""
        return file_stamp(lora_path(continue_from))

    @classmethod
    def execute(cls, options: Any = None, lora: Any = None, continue_from: str = NOTHING, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with readable():
            values = {name: _per_block(text, name) if name.startswith("block_") else text for name, text in widgets.items()}
            if values.get("text_encoder_lr") == 0:
                values["text_encoder_lr"] = "auto"
            if lora is not None or continue_from != NOTHING:
                values["continue_from"] = str(chosen_lora(continue_from, lora))
            return extended(options, places.sections(places.NETWORK_OPTIONS, values))


def _per_block(text: str, what: str) -> dict[str, float]:
    """``mid_block = 4``, one a line, as a table. UserError for a line of another form; the names are checked with the configuration."""
    table: dict[str, float] = {}
    for line in lines(text):
        found = re.fullmatch(r"([\w.]+)\s*[=:]\s*(\d{1,6}(?:\.\d{1,6})?)", line)
        if not found:
            raise UserError(f"{line[:80]!r} in {what} is not understood.", "Write one part a line, for example: up_blocks.1 = 32.")
        table[found[1]] = float(found[2])
    return table
