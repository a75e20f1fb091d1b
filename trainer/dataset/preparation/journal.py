"""What earlier runs already know: an append-only file of results, so that nothing is done twice and a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...core.errors import UserError
from ...core.files import locks
from ...core.files.reading import read_regular
from ...core.files.writing import atomic_path
from ..images.process import Processed
from ..layout import JOURNAL, WORK

_LARGEST = 4 << 30  # bytes


class Journal:
    """Results by key, in ``.prepare/journal.jsonl``. The last line of a killed run may be cut off; it is ignored."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / WORK / JOURNAL
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Processed] = {}
        if os.path.lexists(self._path):
            for line in _read(self._path).splitlines():
                record = _parse(line)
                if record is not None:
                    self.known[record.key] = record
        self._file: IO[str] = self._path.open("a", encoding="utf-8")
        if self._path.stat().st_size and not _ends_with_newline(self._path):
            self._file.write("\n")

    def add(self, record: Processed) -> None:
        """Remember a result at once."""
        self.known[record.key] = record
        self._file.write(json.dumps(record.to_json()) + "\n")
        self._file.flush()

    def files(self) -> set[str]:
        """Names of the pictures and masks that were written."""
        return {name for done in self.known.values() for name in (done.file, done.mask) if name}

    def compact(self, keep: Iterable[str]) -> None:
        """Rewrite the file with the results in ``keep`` only."""
        self.close()
        self.known = {key: self.known[key] for key in keep if key in self.known}
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for record in self.known.values():
                file.write(json.dumps(record.to_json()) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def locked(folder: Path, should_stop: Callable[[], bool], waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the dataset for one writer; others wait, and then find what it made. Raises Cancelled when ``should_stop`` returned True."""
    path = folder / WORK / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.locked(path, should_stop, waiting=waiting):
        yield


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _LARGEST)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Remove it and prepare the dataset again.", kind="dataset") from error


def _parse(line: bytes) -> Processed | None:
    try:
        data: Any = json.loads(line)
        return Processed.from_json(data)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
