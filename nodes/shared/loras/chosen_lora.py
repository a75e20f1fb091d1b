"""The LoRA that a node was given, from its menu or its LORA socket, and what is known about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ....trainer.core.errors import UserError
from ..files.folders import lora_path
from ..inputs.socket_types import LORA_INPUT, lora_from_socket
from .apply_lora import MadeFor
from .cards import file_states


def menu_state(name: str) -> str:
    """A text that changes when the file of a menu entry, or a file beside it, is replaced; empty for a LoRA from the socket."""
    return "" if name == LORA_INPUT else str(file_states(lora_path(name)))


def chosen_lora(name: str, connected: Any) -> Path:
    """The file of the LORA socket, or of the menu entry when nothing is connected. Raises UserError when there is neither."""
    if connected is not None:
        path = Path(lora_from_socket(connected).path)
        if not path.is_file():
            raise UserError(
                f"The LoRA {path.name} is no longer where Train LoRA put it.",
                "Change a setting of Train LoRA and queue again, or choose another file.",
                kind="lora",
            )
        return path
    if name == LORA_INPUT:
        raise UserError("No LoRA was chosen.", "Choose one from the list, or connect the lora output of Train LoRA.", kind="lora")
    return lora_path(name)


def inspect(path: Path) -> Any:
    """The information about a LoRA file, with the trigger words that its card shows. Imports torch, so it is imported late."""
    from ....trainer.lorafile import called_by, inspect_lora

    info = inspect_lora(path)
    return replace(info, trigger_words=called_by(info))


def made_for(info: Any) -> MadeFor:
    """The model that a LoRA was made for, as far as its file shows it."""
    from ....trainer.lorafile import FAMILY_TITLES

    family = "" if info.family == "unknown" else str(FAMILY_TITLES.get(info.family, info.family))
    return MadeFor(family, info.blocks, info.metadata)
