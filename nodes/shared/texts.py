"""Texts that a graph brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...trainer.core.errors import UserError


def require_text(values: Mapping[str, Any]) -> None:
    """Refuse half a character (a lone surrogate, ``"\\ud800"`` in JSON) in any of ``values``: no file, prompt or log can hold it.

    Raises UserError that names the input.
    """
    for name, value in values.items():
        if isinstance(value, str) and (found := _half_character(value)):
            raise UserError(
                f"The text of {name} holds half a character (U+{ord(found):04X}).",
                "Type it again; a program that makes graphs has to send both halves of a character.",
                kind="input",
            )


def _half_character(text: str) -> str:
    return next((letter for letter in text if "\ud800" <= letter <= "\udfff"), "")
