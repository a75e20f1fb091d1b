"""Round brackets in prompts: ComfyUI reads them as emphasis unless a backslash stands before them.

Captions are text: a bracket is a bracket in them, with or without a backslash. What goes into a prompt gets backslashes.
"""

from __future__ import annotations

import re
from contextlib import suppress

_ESCAPED = re.compile(r"\\([()])")
_BARE = re.compile(r"(?<!\\)[()]")
EMPHASIS = re.compile(r"\([^()]*:\s*[+-]?(\d+\.?\d*|\.\d+)\s*\)")
_NESTED = 1.1  # what a pair of brackets without a number multiplies by


def unescape(text: str) -> str:
    r"""``text`` as it is meant: ``\(`` and ``\)`` are brackets. Other backslashes stay."""
    return _ESCAPED.sub(r"\1", text)


def escape(text: str) -> str:
    r"""``text`` (a tag, a trigger word) for a prompt: its brackets get backslashes.

    What is written for a prompt already stays: text with ``\(``, and emphasis with a number such as ``(word:1.2)``.
    """
    if _ESCAPED.search(text) or EMPHASIS.search(text):
        return text
    return _BARE.sub(r"\\\g<0>", text)


def has_word(text: str, word: str) -> bool:
    """Whether ``word`` (or words) stands in ``text``, not as part of a longer word; upper and lower case and backslashes do not count."""
    return re.search(rf"(?<!\w){re.escape(unescape(word))}(?!\w)", unescape(text), re.IGNORECASE) is not None


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """``prompt`` as (text, weight) pairs, the way ComfyUI reads it.

    ``(a)`` weighs 1.1 times what is around it, ``(a:1.3)`` weighs 1.3 whatever is around it; brackets nest, and one that is never closed
    is text. The texts have no backslashes before brackets.
    """
    hidden = prompt.replace("\\(", "\1").replace("\\)", "\2")
    parts = [(text.replace("\1", "(").replace("\2", ")"), weight) for text, weight in _weighted(hidden, 1.0)]
    return [(text, weight) for text, weight in parts if text]


def _weighted(text: str, weight: float) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for part in _split(text):
        if len(part) < 2 or not (part.startswith("(") and part.endswith(")")):
            found.append((part, weight))
            continue
        inside, own = part[1:-1], weight * _NESTED
        head, colon, number = inside.rpartition(":")
        if colon and head:
            with suppress(ValueError):
                own, inside = float(number), head
        found += _weighted(inside, own)
    return found


def _split(text: str) -> list[str]:
    """The outermost bracketed parts of ``text`` and what lies between them."""
    parts: list[str] = []
    depth, start = 0, 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0 and place > start:
                parts.append(text[start:place])
                start = place
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start : place + 1])
                start = place + 1
    if start < len(text):
        parts.append(text[start:])
    return parts
