"""Validation prompts with their own settings, in the notation of kohya's trainer: ``a cat --n blurry --w 768 --h 512 --s 30``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# flag: the setting, its type, and the type in words; as in kohya's trainer
_FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "n": ("negative", str.strip, "text"),
    "w": ("width", int, "a whole number of pixels"),
    "h": ("height", int, "a whole number of pixels"),
    "d": ("seed", int, "a whole number"),
    "s": ("steps", int, "a whole number"),
    "l": ("guidance", float, "a number"),
}
_WITHOUT_EFFECT = {
    "g": "the embedded guidance of other models; use --l for the guidance scale",
    "ss": "the sampler, which is always DPM++ 2M",
    "cn": "a ControlNet's image",
    "ctr": "the guidance of other models",
    "rcfg": "the guidance of other models",
    "fs": "the flow shift of other models",
    "am": "a multiplier of the LoRA",
}
_FLAG = re.compile(r"([A-Za-z]{1,4})(?:\s+(.*))?$", re.DOTALL)
_SMALLEST, _LARGEST = 64, 8192  # pixels
_MOST_STEPS = 1000
_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplePrompt:
    """One prompt with its own settings; None means the setting of all prompts. ``notes`` report flags that were changed or have no
    effect."""

    text: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()


def read_prompt(line: str) -> SamplePrompt:
    """Split ``line`` into prompt and flags. Raises ValueError for a flag that needs a number and has none.

    As in kohya's trainer, a flag starts with a space and two dashes, and its value ends at the next flag. Other dashes stay in the text.
    """
    text, values, notes = "", {}, []
    place = ""  # the flag that text belongs to; empty: the prompt
    for number, part in enumerate(line.split(" --")):
        match = _FLAG.match(part) if number else None
        name = match[1].lower() if match else ""
        if match and name in _FLAGS:
            key, convert, kind = _FLAGS[name]
            values[key] = _converted(name, (match[2] or "").strip(), convert, kind)
            place = name
        elif match and name in _WITHOUT_EFFECT:
            notes.append(f"--{name} has no effect: it is {_WITHOUT_EFFECT[name]}.")
            place = name
        elif place in ("", "n"):
            more = part if not number else f" --{part}"
            if match and number:
                notes.append(f"--{name} is not a known flag and counts as text.")
            if place:
                values["negative"] += more
            else:
                text += more
        else:
            notes.append(f"--{part[:40]} after --{place} is not understood and was ignored.")
    changed = {key: limited for key, value in values.items() if (limited := _limited(key, value)) != value}
    notes += [f"The {key} {values[key]} was changed to {value}." for key, value in changed.items()]
    return SamplePrompt(text.strip(), **{**values, **changed}, notes=tuple(notes))


def _converted(name: str, value: str, convert: Callable[[str], Any], kind: str) -> Any:
    try:
        result = convert(value)
        if name == "n" or 0 <= result <= _LARGEST_SEED:  # false for nan
            return result
    except ValueError:
        pass
    raise ValueError(f"--{name} {value[:40]!r} in a prompt: expected {kind}")


def _limited(key: str, value: Any) -> Any:
    """``value`` within the limits of kohya's trainer: sizes in multiples of 8 from 64 on, 1 to 1000 steps."""
    if key in ("width", "height"):
        return min(_LARGEST, max(_SMALLEST, value - value % 8))
    return min(_MOST_STEPS, max(1, value)) if key == "steps" else value
