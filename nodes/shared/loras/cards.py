"""Cards of LoRA files for the browser, made once for each state of a file and of what lies beside it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ....trainer.core.files.reading import file_stamp
from ..files.folders import lora_path

_KEPT = 256  # cards in memory, about 20 KB each with their pictures


def lora_card(name: str) -> dict[str, Any]:
    """The card of an entry of ComfyUI's LoRA list. Raises UserError for any other name, OSError when the file has just gone."""
    path = lora_path(name)
    return {"name": name, **_card(str(path), states(path))}


def unread_card(name: str) -> dict[str, Any]:
    """The card of an entry that could not be read in time."""
    from ....trainer.lorafile.describing.card import unread

    return {"name": name, **unread(Path(name), "The file could not be read in time. Is its disk slow, or is it no LoRA?").to_json()}


def states(path: Path) -> tuple[tuple[str, str], ...]:
    """Names and stamps of a LoRA file and of what tells of it beside it: they change when one of them does."""
    from ....trainer.lorafile import companions

    return tuple((each.name, file_stamp(each)) for each in (path, *companions(path)))


@lru_cache(maxsize=_KEPT)
def _card(path: str, _states: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    from ....trainer.lorafile import card

    return card(Path(path)).to_json()
