"""Finding models in a file by the names of their tensors. Imports no library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def find_prefix(shapes: Shapes, prefixes: Iterable[str], *names: str) -> str | None:
    """The first of ``prefixes`` with which all ``names`` are in the file; None if there is none."""
    return next((prefix for prefix in prefixes if all(f"{prefix}{name}" in shapes for name in names)), None)


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """The number of blocks ``<prefix>0.``, ``<prefix>1.`` and so on. Raises KeyError where one in between is missing."""
    numbers = {int(match[1]) for key in shapes if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", key))}
    if numbers != set(range(len(numbers))):
        missing = next(number for number in range(max(numbers)) if number not in numbers)
        raise KeyError(f"{prefix}{missing}")
    return len(numbers)
