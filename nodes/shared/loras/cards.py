"""Cards of LoRA files for the browser, cached until a file or one of those beside it changes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ....trainer.core.files.reading import file_stamp
from ..files.folders import lora_path

_CACHED = 256  # cards of about 20 KB each, with their images


def lora_card(name: str) -> dict[str, Any]:
    """The card of an entry of ComfyUI's LoRA list. Raises UserError for any other name, and OSError when the file was just deleted."""
    path = lora_path(name)
    return {"name": name, **_card(str(path), file_states(path))}


def unread_card(name: str) -> dict[str, Any]:
    """The card of an entry whose file could not be read in time."""
    from ....trainer.lorafile.describing.card import unread

    return {
        "name": name,
        **unread(Path(name), "The file could not be read in time. The disk may be slow, or the file may not be a LoRA.").to_json(),
    }


def file_states(path: Path) -> tuple[tuple[str, str], ...]:
    """Names and stamps of a LoRA file and the files beside it that describe it, which change when one of these files does."""
    from ....trainer.lorafile import companions

    return tuple((each.name, file_stamp(each)) for each in (path, *companions(path)))


@lru_cache(maxsize=_CACHED)
def _card(path: str, _states: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    from ....trainer.lorafile import card

    return card(Path(path)).to_json()
