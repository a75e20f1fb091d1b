"""Counts in sentences."""

from __future__ import annotations


def plural(count: int, word: str, more: str = "") -> str:
    """``1 image``, ``2 images``; ``more`` is the word for several where it does not end in s."""
    return f"{count} {word if count == 1 else more or word + 's'}"
