"""``FILE:STRENGTH``, as a command line names a LoRA."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError


def parse_strength(text: str) -> tuple[Path, float]:
    """``style.safetensors:0.8`` as path and strength, which is 1 without a number. The colon of a drive letter is left alone.

    Raises UserError for a strength beyond 100.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        strength = float(number)
    except ValueError:
        return Path(text), 1.0
    if not abs(strength) <= 100:
        raise UserError(f"The strength {number} in {text!r} is out of range.", "Strengths usually lie between -2 and 2.", kind="lora")
    return Path(name), strength
