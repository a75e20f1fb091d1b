"""Rendered training pictures in memory-mapped files, so that training reads what was drawn once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .portraits import BASE_STYLES, random_portrait
from .render import render
from .shapes import random_drawing

Pictures = NDArray[np.uint8]
"""(n, size, size, 3) RGB."""
Report = Callable[[str], None]

FIRST_TRAINING_SEED = 1_000_000
"""Portraits for the base's training have seeds from here on; the demonstration and tests use smaller ones."""


def _draw(path: Path, count: int, size: int, one: Callable[[int], NDArray[np.uint8]], report: Report) -> Pictures:
    if path.exists():
        stored: Pictures = np.load(path, mmap_mode="r")
        if stored.shape == (count, size, size, 3):
            return stored
    unfinished = path.with_name(path.name + ".part")
    out = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, size, size, 3))
    for i in range(count):
        out[i] = one(i)
        if i % 500 == 499:
            report(f"{path.name}: {i + 1} of {count} pictures drawn")
    out.flush()
    del out
    os.replace(unfinished, path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def portrait_pictures(folder: Path, style: str, count: int, size: int, report: Report) -> Pictures:
    """``count`` portraits of one of the base's styles; portrait i has seed ``FIRST_TRAINING_SEED + i``.

    Raises ``ValueError`` for the held-back style: the base must never see it.
    """
    if style not in BASE_STYLES:
        raise ValueError(f"the base is never trained on {style!r}; its styles are {', '.join(BASE_STYLES)}")

    def one(i: int) -> NDArray[np.uint8]:
        return np.asarray(render(random_portrait(FIRST_TRAINING_SEED + i), style, size))

    folder.mkdir(parents=True, exist_ok=True)
    return _draw(folder / f"{style}-{size}.npy", count, size, one, report)


def shape_pictures(folder: Path, count: int, size: int, report: Report) -> Pictures:
    """``count`` random drawings for the autoencoder."""

    def one(i: int) -> NDArray[np.uint8]:
        return np.asarray(random_drawing(i, size))

    folder.mkdir(parents=True, exist_ok=True)
    return _draw(folder / f"shapes-{size}.npy", count, size, one, report)
