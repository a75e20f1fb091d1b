"""Round brackets in prompts, which ComfyUI reads as emphasis unless they are escaped by a backslash.

In captions a bracket is plain text, with or without a backslash. Text that becomes part of a prompt is escaped.
"""

from __future__ import annotations

import re
from contextlib import suppress

_ESCAPED = re.compile(r"\\([()])")
_BARE = re.compile(r"(?<!\\)[()]")
EMPHASIS = re.compile(r"\([^()]*:\s*[+-]?(\d+(?:\.\d*)?|\.\d+)\s*\)")
_NESTED = 1.1  # the factor of a pair of brackets without a number
_DEEPEST = 100  # levels of brackets; those further inside are text


def unescape(text: str) -> str:
    r"""``text`` with brackets for ``\(`` and ``\)``. Other backslashes are kept."""
    return _ESCAPED.sub(r"\1", text)


def escape(text: str) -> str:
    r"""``text`` (a tag, a trigger word) for a prompt, with its brackets escaped.

    Text already written for a prompt is unchanged: text with ``\(``, and emphasis with a number such as ``(word:1.2)``.
    """
    if _ESCAPED.search(text) or EMPHASIS.search(text):
        return text
    return _BARE.sub(r"\\\g<0>", text)


def has_word(text: str, word: str) -> bool:
    """Whether ``text`` contains ``word`` (or words) as whole words, ignoring case and backslashes."""
    return re.search(rf"(?<!\w){re.escape(unescape(word))}(?!\w)", unescape(text), re.IGNORECASE) is not None


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """Split ``prompt`` into (text, weight) pairs as ComfyUI does.

    ``(a)`` multiplies the surrounding weight by 1.1, ``(a:1.3)`` sets it to 1.3. Brackets nest, and an unclosed one is text. The texts are
    unescaped.
    """
    hidden = prompt.replace("\\(", "\1").replace("\\)", "\2")
    parts = [(text.replace("\1", "(").replace("\2", ")"), weight) for text, weight in _weighted(hidden, 1.0, _DEEPEST)]
    return [(text, weight) for text, weight in parts if text]


def _weighted(text: str, weight: float, levels: int) -> list[tuple[str, float]]:
    if not levels:
        return [(text, weight)]
    weighted: list[tuple[str, float]] = []
    for part in _split(text):
        if len(part) < 2 or not (part.startswith("(") and part.endswith(")")):
            weighted.append((part, weight))
            continue
        inside, own = part[1:-1], weight * _NESTED
        head, colon, number = inside.rpartition(":")
        if colon and head:
            with suppress(ValueError):
                own, inside = float(number), head
        weighted += _weighted(inside, own, levels - 1)
    return weighted


def _split(text: str) -> list[str]:
    """The outermost bracketed parts of ``text`` and the text between them."""
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
