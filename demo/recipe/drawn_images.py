"""Rendered training images in memory-mapped files, so that each is drawn only once.

    python -m demo.recipe.drawn_images FILE KIND SIZE FIRST LAST

draws a part of a file: the processes that share the work are started so, which spares them the imports of the recipe.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.core import devices
from trainer.core.files.writing import atomic_path

from ..drawing.portraits import BASE_STYLES, random_portrait
from ..drawing.render import render
from ..drawing.shapes import random_drawing

Pictures = NDArray[np.uint8]
"""(n, size, size, 3) RGB."""
Report = Callable[[str], None]

FIRST_TRAINING_SEED = 1_000_000
"""The first seed of the base's training portraits; the demonstration and tests use smaller ones."""
SHAPES = "shapes"
WORTH_A_PROCESS = 100
"""So many images take longer to draw than a process takes to start."""


def draw_image(kind: str, size: int, i: int) -> Pictures:
    """Image ``i`` of a file, (size, size, 3): of a style of portraits, or a random drawing."""
    drawn = random_drawing(i, size) if kind == SHAPES else render(random_portrait(FIRST_TRAINING_SEED + i), kind, size)
    return np.asarray(drawn)


def _draw(folder: Path, kind: str, count: int, size: int, report: Report) -> Pictures:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{size}.npy"
    if path.exists():
        stored: Pictures = np.load(path, mmap_mode="r")
        if stored.shape == (count, size, size, 3):
            return stored
    with atomic_path(path) as unfinished:
        _draw_into(unfinished, kind, count, size)
    report(f"{path.name}: {count} pictures drawn")
    loaded: Pictures = np.load(path, mmap_mode="r")
    return loaded


def _draw_into(unfinished: Path, kind: str, count: int, size: int) -> None:
    open_memmap: Any = np.lib.format.open_memmap  # without types in the numpy of Python 3.10
    out = open_memmap(unfinished, "w+", np.uint8, (count, size, size, 3))
    workers = max(1, min(devices.cores(), count // WORTH_A_PROCESS))
    if workers > 1:
        out.flush()
        del out
        _draw_in_processes(unfinished, kind, count, size, workers)
    else:
        for i in range(count):
            out[i] = draw_image(kind, size, i)
        out.flush()


def _draw_in_processes(file: Path, kind: str, count: int, size: int, workers: int) -> None:
    bounds = [count * k // workers for k in range(workers + 1)]
    running = [start_module(__name__, file.resolve(), kind, size, first, last) for first, last in pairwise(bounds)]
    try:
        failed = [process for process in running if process.wait() != 0]
    finally:
        for process in running:
            process.kill()
    if failed:
        command = " ".join(str(argument) for argument in failed[0].args)  # type: ignore[union-attr]
        raise RuntimeError(f"drawing the {kind} pictures failed (exit status {failed[0].returncode}, see above): {command}")


def start_module(module: str, *arguments: object, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """Start a process that runs a module of the demo. Without ``-m``, since a portable Python does not look into the current folder."""
    root = Path(__file__).resolve().parents[2]
    code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, str(root), module, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, cwd=root, stdin=stdin)


def save_array(path: Path, values: NDArray[np.generic]) -> None:
    """Write a ``.npy`` file atomically."""
    with atomic_path(path) as part, part.open("wb") as file:  # given a path, numpy appends .npy to it
        np.save(file, values)


def portrait_images(folder: Path, style: str, count: int, size: int, report: Report) -> Pictures:
    """``count`` portraits of one of the base's styles; portrait i has seed ``FIRST_TRAINING_SEED + i``.

    Raises ``ValueError`` for the held-back style: the base must never see it.
    """
    if style not in BASE_STYLES:
        raise ValueError(f"the base is never trained on {style!r}; its styles are {', '.join(BASE_STYLES)}")
    return _draw(folder, style, count, size, report)


def shape_images(folder: Path, count: int, size: int, report: Report) -> Pictures:
    """``count`` random drawings for the autoencoder."""
    return _draw(folder, SHAPES, count, size, report)


def main(arguments: list[str]) -> None:
    """Draw the images FIRST to LAST - 1 into FILE, which already has its full size."""
    file, kind, size, first, last = arguments
    out = np.load(file, mmap_mode="r+")
    for i in range(int(first), int(last)):
        out[i] = draw_image(kind, int(size), i)
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
