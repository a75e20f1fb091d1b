"""Counts with nouns, for messages."""

from __future__ import annotations


def plural(count: int, word: str, more: str = "") -> str:
    """``1 image``, ``2 images``. ``more`` is the plural of ``word`` if it is not ``word`` with an s."""
    return f"{count} {word if count == 1 else more or word + 's'}"
