"""Prompts with trigger words, and lists of prompts and numbers from widgets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ....trainer.core.errors import UserError
from ....trainer.core.prompt_syntax import escape, has_word


def with_trigger_words(prompt: str, trigger_words: str | None) -> str:
    """``prompt`` with the missing ones of the comma-separated ``trigger_words`` in front.

    Case is ignored, as in CLIP, and only whole words count. Brackets in the added words are escaped with backslashes, because ComfyUI reads
    plain ones as emphasis.
    """
    missing: list[str] = []
    for word in (part.strip() for part in (trigger_words or "").split(",")):
        if word and not has_word(prompt, word) and not any(has_word(other, word) for other in missing):
            missing.append(escape(word))
    return ", ".join([*missing, prompt]) if prompt.strip() else ", ".join(missing)


def for_prompt(trigger_words: Iterable[str]) -> str:
    """Trigger words for a prompt, separated by commas and with escaped brackets."""
    return ", ".join(dict.fromkeys(escape(word) for word in trigger_words))


def lines(text: str) -> list[str]:
    """The lines of a widget that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def numbers(text: str, *, what: str, low: float, high: float) -> list[float]:
    """Numbers separated by commas, semicolons or spaces, without repetitions. Raises UserError for anything else."""
    values: dict[float, None] = {}
    for part in re.split(r"[,;\s]+", text.strip()):
        if not part:
            continue
        try:
            value = float(part)
        except ValueError:
            raise UserError(
                f"{part!r} in {what} is not a number.", "Enter numbers separated by commas, for example 0.6, 0.8, 1.0."
            ) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{part} in {what} is not between {low:g} and {high:g}.", "Change it and queue again.")
        values[value] = None
    if not values:
        raise UserError(f"{what} is empty.", "Enter at least one number.")
    return list(values)
