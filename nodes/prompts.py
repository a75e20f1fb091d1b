"""Prompt text: trigger words in front, each exactly once; lists of prompts and numbers from widgets."""

from __future__ import annotations

import math
import re

from ..trainer.errors import UserError


def with_trigger_words(prompt: str, trigger_words: str | None) -> str:
    """``prompt`` with those of the comma-separated ``trigger_words`` in front that it does not contain yet.

    Upper and lower case count as the same, as they do for CLIP. A word inside another word does not count.
    """
    missing: list[str] = []
    for word in (part.strip() for part in (trigger_words or "").split(",")):
        if word and not _contains(prompt, word) and not any(_contains(other, word) for other in missing):
            missing.append(word)
    return ", ".join([*missing, prompt]) if prompt.strip() else ", ".join(missing)


def lines(text: str) -> list[str]:
    """The lines of a widget that say something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def numbers(text: str, *, what: str, low: float, high: float) -> list[float]:
    """Numbers separated by commas, semicolons or spaces, without repetitions. UserError for anything else."""
    values: list[float] = []
    for part in re.split(r"[,;\s]+", text.strip()):
        if not part:
            continue
        try:
            value = float(part)
        except ValueError:
            raise UserError(
                f"{part!r} in {what} is not a number.", "Write numbers separated by commas, for example 0.6, 0.8, 1.0."
            ) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{part} in {what} is not between {low:g} and {high:g}.", "Change it and queue again.")
        if value not in values:
            values.append(value)
    if not values:
        raise UserError(f"{what} is empty.", "Write at least one number.")
    return values


def _contains(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
