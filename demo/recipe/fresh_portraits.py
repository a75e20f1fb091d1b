"""Portraits that other processes draw while the UNet trains, so that it does not overfit to a fixed set.

    python -m demo.recipe.fresh_portraits FOLDER SIZE OFFSET FIRST STRIDE

draws chunks FIRST, FIRST + STRIDE, ... into the folder until its standard input ends. Encoded chunks are kept as
latents, so that an interrupted training resumes with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from trainer.core.files.writing import remove_partial
from trainer.training.event_writer import watch_parent

from ..drawing.portraits import BASE_STYLES, Portrait, random_portrait
from .drawn_images import FIRST_TRAINING_SEED, Pictures, draw_image, save_array, start_module

CHUNK = 16
"""Portraits per chunk, each in every style of the base."""
WAITING = 64
"""The most chunks that wait to be encoded, so that a training slower than the drawing does not fill the disk."""
AT_ONCE = 4

Encode = Callable[[Pictures], NDArray[np.float32]]
"""Pictures (n, size, size, 3) to latents (n, 4, size / 8, size / 8)."""
Part = tuple[list[Portrait], NDArray[np.float32]]
"""Portraits, and their latents in every style: all of the first style, then all of the next."""


def portraits_of(chunk: int, offset: int) -> list[Portrait]:
    """The portraits of a chunk. The first chunk starts ``offset`` portraits after the training's first seed."""
    return [random_portrait(FIRST_TRAINING_SEED + i) for i in _places(chunk, offset)]


def draw_chunk(chunk: int, offset: int, size: int) -> Pictures:
    """A chunk's images (styles * CHUNK, size, size, 3)."""
    return np.stack([draw_image(style, size, i) for style in BASE_STYLES for i in _places(chunk, offset)])


class FreshPortraits:
    """A context within which ``processes`` draw. ``offset``: portraits that the training already has.

    ``folder`` is for one offset and one size.
    """

    def __init__(self, folder: Path, offset: int, size: int, encode: Encode, processes: int) -> None:
        self._folder, self._offset, self._size, self._encode, self._processes = folder, offset, size, encode, processes
        self._kept: list[int] = []  # chunks from before an interruption that were not taken yet
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> FreshPortraits:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self._folder)
        self._kept = _chunks(self._folder, "latents")
        for chunk in self._kept:  # interrupted between the two
            _path(self._folder, chunk, "pictures").unlink(missing_ok=True)
        for number in range(self._processes):
            arguments = (self._folder.resolve(), self._size, self._offset, number, self._processes)
            self._running.append(start_module(__name__, *arguments, stdin=subprocess.PIPE))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self._running.clear()

    def take(self) -> list[Part]:
        """The portraits drawn since the last call or encoded before an interruption, at most ``AT_ONCE`` chunks.

        Raises RuntimeError when a process that draws has ended.
        """
        if failed := [process.returncode for process in self._running if process.poll() is not None]:
            raise RuntimeError(f"a process that draws portraits ended with exit status {failed[0]} (its message is above)")
        if self._kept:
            now, self._kept = self._kept[:AT_ONCE], self._kept[AT_ONCE:]
            return [(portraits_of(chunk, self._offset), np.load(_path(self._folder, chunk, "latents"))) for chunk in now]
        return [(portraits_of(chunk, self._offset), self._encoded(chunk)) for chunk in _chunks(self._folder, "pictures")[:AT_ONCE]]

    def _encoded(self, chunk: int) -> NDArray[np.float32]:
        drawn = _path(self._folder, chunk, "pictures")
        latents = self._encode(np.load(drawn))
        save_array(_path(self._folder, chunk, "latents"), latents)
        drawn.unlink()
        return latents


def _places(chunk: int, offset: int) -> range:
    return range(offset + chunk * CHUNK, offset + (chunk + 1) * CHUNK)


def _path(folder: Path, chunk: int, kind: str) -> Path:
    return folder / f"{chunk}-{kind}.npy"


def _chunks(folder: Path, kind: str) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.glob(f"*-{kind}.npy"))


def main(arguments: list[str]) -> None:
    """Entry point of a drawing process."""
    watch_parent(lambda: os._exit(0))
    folder, size, offset, chunk, stride = Path(arguments[0]), *(int(argument) for argument in arguments[1:])
    while True:
        if not any(_path(folder, chunk, kind).exists() for kind in ("pictures", "latents")):
            while len(_chunks(folder, "pictures")) >= WAITING:
                time.sleep(0.2)
            save_array(_path(folder, chunk, "pictures"), draw_chunk(chunk, offset, size))
        chunk += stride


if __name__ == "__main__":
    main(sys.argv[1:])
