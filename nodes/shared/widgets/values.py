"""Lists and tables that are edited as text in a widget."""

from __future__ import annotations

import re

from ....trainer.core.errors import UserError
from ..inputs.prompts import lines


def prompts(text: str, _widget: str) -> list[str]:
    """One prompt a line."""
    return lines(text)


def numbers_by_block(text: str, widget: str) -> dict[str, float]:
    """``mid_block = 4``, one a line. Raises UserError for any other form; block names are checked with the model."""
    table: dict[str, float] = {}
    for line in lines(text):
        match = re.fullmatch(r"([\w.*]+)\s*[=:]\s*(\d{1,6}(?:\.\d{1,6})?)", line)
        if not match:
            raise UserError(f"{line[:80]!r} in {widget} is not understood.", "Write one block a line, for example: up_blocks.1 = 32.")
        table[match[1]] = float(match[2])
    return table


def tags(text: str, _widget: str) -> list[str]:
    """Tags separated by commas or line breaks."""
    return [tag.strip() for line in lines(text) for tag in line.split(",") if tag.strip()]


def renamed_tags(text: str, widget: str) -> dict[str, str]:
    """``old tag = new tag``, one a line. Raises UserError for any other form."""
    pairs: dict[str, str] = {}
    for line in lines(text):
        # with spaces first, since =_= is a tag
        old, equals, new = line.partition(" = ") if " = " in line else line.partition("=")
        if not equals or not old.strip():
            raise UserError(f"{line!r} in {widget} has no old tag = new tag.", "Write one pair a line: grey hair = gray hair")
        pairs[old.strip()] = new.strip()
    return pairs
