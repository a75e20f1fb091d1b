"""Portraits that other processes draw while the UNet trains, so that it never learns its pictures by heart.

    python -m demo.fresh FOLDER SIZE OFFSET FIRST STRIDE

draws chunks FIRST, FIRST + STRIDE, ... into the folder until its standard input ends. What has been encoded is kept as
latents, so that an interrupted training goes on with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .pictures import FIRST_TRAINING_SEED, Pictures
from .portraits import BASE_STYLES, Portrait, random_portrait
from .render import render

CHUNK = 16
"""Portraits that are handed over at once, each in every style of the base."""
WAITING = 64
"""Chunks that may wait to be encoded: a training that is slower than the drawing does not fill the disk."""
AT_ONCE = 4

Encode = Callable[[Pictures], NDArray[np.float32]]
"""Pictures (n, size, size, 3) to latents (n, 4, size / 8, size / 8)."""
Part = tuple[list[Portrait], NDArray[np.float32]]
"""Portraits, and their latents in every style: all of the first style, then all of the next."""


def portraits_of(chunk: int, offset: int) -> list[Portrait]:
    """The portraits of a chunk; ``offset`` portraits of the training's seeds are left out before the first chunk."""
    first = FIRST_TRAINING_SEED + offset + chunk * CHUNK
    return [random_portrait(first + i) for i in range(CHUNK)]


def draw(chunk: int, offset: int, size: int) -> Pictures:
    """A chunk's pictures (styles * CHUNK, size, size, 3)."""
    portraits = portraits_of(chunk, offset)
    return np.stack([np.asarray(render(portrait, style, size)) for style in BASE_STYLES for portrait in portraits])


class Fresh:
    """Use it as a context: the processes draw within it. ``offset``: portraits that the training has already."""

    def __init__(self, folder: Path, offset: int, size: int, encode: Encode, processes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._offset, self._size, self._encode, self._processes = folder, offset, size, encode, processes
        self._taken: set[int] = set()
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Fresh:
        for part in self._folder.glob("*.part"):
            part.unlink()
        command = [sys.executable, "-m", __name__, str(self._folder.resolve()), str(self._size), str(self._offset)]
        root = Path(__file__).resolve().parents[1]
        for number in range(self._processes):
            self._running.append(
                subprocess.Popen([*command, str(number), str(self._processes)], cwd=root, stdin=subprocess.PIPE)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self._running.clear()

    def take(self) -> list[Part]:
        """What has been drawn since the last call, or was encoded before an interruption; at most ``AT_ONCE`` chunks.

        Raises RuntimeError when a process that draws has ended.
        """
        if failed := [process.returncode for process in self._running if process.poll() is not None]:
            raise RuntimeError(f"a process that draws portraits ended with exit status {failed[0]} (its message is above)")
        parts: list[Part] = []
        for chunk in self._numbers("latents"):
            if chunk not in self._taken and len(parts) < AT_ONCE:
                parts.append(self._part(chunk, np.load(self._path(chunk, "latents"))))
        for chunk in self._numbers("pictures")[: AT_ONCE - len(parts)]:
            drawn = self._path(chunk, "pictures")
            latents = self._encode(np.load(drawn))
            _write(self._path(chunk, "latents"), latents)
            drawn.unlink()
            parts.append(self._part(chunk, latents))
        return parts

    def _part(self, chunk: int, latents: NDArray[np.float32]) -> Part:
        self._taken.add(chunk)
        return portraits_of(chunk, self._offset), latents

    def _numbers(self, kind: str) -> list[int]:
        return _numbers(self._folder, kind)

    def _path(self, chunk: int, kind: str) -> Path:
        return _path(self._folder, chunk, kind)


def _path(folder: Path, chunk: int, kind: str) -> Path:
    return folder / f"{chunk}-{kind}.npy"


def _numbers(folder: Path, kind: str) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.glob(f"*-{kind}.npy"))


def _write(path: Path, values: NDArray[np.generic]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, values)
    os.replace(part, path)


def _end_with_input() -> None:
    with suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 1):  # not its buffer, which a thread must not hold when the interpreter ends
            pass
    os._exit(0)


def main(arguments: list[str]) -> None:
    """What a process that draws does."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    folder, size, offset, chunk, stride = Path(arguments[0]), *(int(argument) for argument in arguments[1:])
    while True:
        if not any(_path(folder, chunk, kind).exists() for kind in ("pictures", "latents")):
            while len(_numbers(folder, "pictures")) >= WAITING:
                time.sleep(0.2)
            _write(_path(folder, chunk, "pictures"), draw(chunk, offset, size))
        chunk += stride


if __name__ == "__main__":
    main(sys.argv[1:])
