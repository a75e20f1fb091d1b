"""Results of earlier runs, so that no image is processed twice and a run that was killed can continue."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ....core.errors import UserError
from ....core.files import locks
from ....core.files.reading import read_regular
from ....core.files.writing import atomic_path
from ....core.messages import File, Message
from ...images.process import ProcessedImage
from ...layout import JOURNAL, WORK

_LARGEST = 4 << 30  # bytes


class Journal:
    """Results by key, in the append-only file ``.prepare/journal.jsonl``. An incomplete last line of a killed run is ignored.

    ``written``: the results with files since the last finished run, also those that another one replaced: the image of a renamed source
    has the same key and another file. A result is added before its files are written, so that none can be there without it; whether they
    are there is checked by their content.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / WORK / JOURNAL
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, ProcessedImage] = {}
        self.written: set[ProcessedImage] = set()
        self._lock = threading.Lock()
        if os.path.lexists(self._path):
            for line in _read(self._path).splitlines():
                result = _parse(line)
                if result is not None:
                    self._keep(result)
        self._file: IO[str] = self._path.open("a", encoding="utf-8")
        if self._path.stat().st_size and not _ends_with_newline(self._path):
            self._file.write("\n")

    def add(self, result: ProcessedImage) -> None:
        """Keep a result and write it at once. Threads may call it at the same time."""
        with self._lock:
            self._keep(result)
            self._file.write(json.dumps(result.to_json()) + "\n")
            self._file.flush()

    def files(self) -> set[str]:
        """Names of the images and masks of all results in ``written``."""
        return {name for result in self.written for name in (result.file, result.mask) if name}

    def compact(self, keys: Iterable[str]) -> None:
        """Close the file and write it again with the results of ``keys`` only."""
        self.close()
        self.results = {key: self.results[key] for key in keys if key in self.results}
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for result in self.results.values():
                file.write(json.dumps(result.to_json()) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _keep(self, result: ProcessedImage) -> None:
        self.results[result.key] = result
        if result.file:
            self.written.add(result)


@contextmanager
def locked(folder: Path, should_stop: Callable[[], bool], waiting: Callable[[], None]) -> Iterator[None]:
    """Lock ``folder`` for one process; others call ``waiting`` and wait. Raises Cancelled when ``should_stop`` returned True."""
    path = folder / WORK / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold_lock(path, should_stop, waiting=waiting):
        yield


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _LARGEST)
    except OSError as error:
        raise UserError(
            Message(File(str(path)), f" cannot be read: {error.strerror}."), "Remove it and prepare the dataset again.", kind="dataset"
        ) from error


def _parse(line: bytes) -> ProcessedImage | None:
    try:
        data: Any = json.loads(line)
        return ProcessedImage.from_json(data)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
