"""Checks the texts that a graph brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...trainer.core.errors import UserError


def require_valid_unicode(inputs: Mapping[str, Any]) -> None:
    """Reject a lone surrogate (half a character, ``"\\ud800"`` in JSON) in any text of ``inputs``: no file, prompt or log can hold it.

    Raises UserError that names the input.
    """
    for name, value in inputs.items():
        if isinstance(value, str) and (surrogate := _first_surrogate(value)):
            raise UserError(
                f"The text of {name} holds half a character (U+{ord(surrogate):04X}).",
                "Type it again. A program that makes graphs must send both halves of a character.",
                kind="input",
            )


def _first_surrogate(text: str) -> str:
    return next((letter for letter in text if "\ud800" <= letter <= "\udfff"), "")
