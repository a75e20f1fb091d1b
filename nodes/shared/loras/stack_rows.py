"""Parse the rows of LoRA Stack: JSON text from the list in the browser, or from an API client."""

from __future__ import annotations

import json
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from ....trainer.core.errors import UserError

STRONGEST = 100.0  # as in core's loader
MOST_ROWS = 64
_LONGEST = 100_000  # characters
_KEYS = ("on", "name", "strength", "clip")
_EXAMPLE = '[{"on": true, "name": "style.safetensors", "strength": 0.8}]'


@dataclass(frozen=True)
class StackRow:
    """One LoRA of a stack: ``strength`` for the model, ``clip`` for the text encoder."""

    on: bool
    name: str
    strength: float
    clip: float


def read_rows(text: Any, listed: Container[str]) -> list[StackRow]:
    """The rows in ``text``, in order. ``clip`` equals ``strength`` when it is missing or null.

    Raises UserError with the number of the row for invalid data, a strength beyond ±100, or a LoRA that is switched on but not in
    ``listed``. One that is switched off may be missing, so that a saved workflow runs on a machine without it.
    """
    if not isinstance(text, str):
        raise _wrong(f"The list of LoRAs is {type(text).__name__}, not text")
    if len(text) > _LONGEST:
        raise _wrong(f"The list of LoRAs has {len(text)} characters, more than {_LONGEST}")
    try:
        data = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise _wrong(f"The list of LoRAs cannot be read ({str(error)[:100]})") from error
    if not isinstance(data, list):
        raise _wrong("The list of LoRAs is not a list")
    if len(data) > MOST_ROWS:
        raise _wrong(f"The list of LoRAs has {len(data)} rows, more than {MOST_ROWS}")
    rows = [_row(number, each) for number, each in enumerate(data, 1)]
    for number, row in enumerate(rows, 1):
        if row.on and not row.name:
            raise UserError(f"Row {number} of LoRA Stack has no LoRA.", "Choose one, switch the row off, or remove it.", kind="lora")
        if row.on and row.name not in listed:
            raise UserError(
                f"Row {number} of LoRA Stack: the LoRA {row.name[:200]!r} is not in ComfyUI's list.",
                "Put it in models/loras, choose another one, or switch the row off.",
                kind="path",
            )
    return rows


def _row(number: int, data: Any) -> StackRow:
    if not isinstance(data, dict):
        raise _wrong(f"Row {number} of LoRA Stack is not an object")
    unknown = [key for key in data if key not in _KEYS]
    if unknown:
        raise _wrong(f"Row {number} of LoRA Stack has the unknown key {str(unknown[0])[:50]!r}")
    on, name = data.get("on", True), data.get("name", "")
    if not isinstance(on, bool) or not isinstance(name, str):
        raise _wrong(f"Row {number} of LoRA Stack: 'on' must be true or false, and 'name' must be text")
    strength = _strength(number, "strength", data.get("strength", 1.0))
    clip = data.get("clip")
    return StackRow(on, name, strength, strength if clip is None else _strength(number, "clip", clip))


def _strength(number: int, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"Row {number} of LoRA Stack: {key!r} is not a number")
    # compared before conversion, because JSON may have integers too large for a float
    if not -STRONGEST <= value <= STRONGEST or not math.isfinite(value):
        raise UserError(
            f"Row {number} of LoRA Stack: {key!r} is outside -{STRONGEST:g} to {STRONGEST:g}.",
            "1 is as trained; 0.6 to 0.8 often looks best.",
            kind="lora",
        )
    return float(value)


def _wrong(what: str) -> UserError:
    return UserError(f"{what}.", f"A valid list looks like this: {_EXAMPLE}", kind="lora")
