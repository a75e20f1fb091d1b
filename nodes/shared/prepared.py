"""What Dataset Prep left behind, so that a dataset that was edited or deleted since is noticed by the next queue.

ComfyUI asks for a node's fingerprint before it runs and keeps the result under it. A fingerprint of the folder alone would change by the
node's own work; so each folder has a mark, which changes only when the folder is not as the last preparation left it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ...trainer.core.files.reading import file_stamp
from ...trainer.dataset.layout import FOLDERS, HEADER, ROWS

_KINDS = (".png", ".txt")


@dataclass
class _Seen:
    """A prepared folder: how it was left, under which mark, and the mark that was given last."""

    state: str
    mark: str = ""
    given: str = ""


_SEEN: dict[Path, _Seen] = {}  # only of this process: where it has prepared nothing, ComfyUI keeps no result either


def mark(name: Path | None) -> str:
    """Stays as it is until a dataset of this ``name`` differs from what the last ``remember`` saw; None stands for any name.

    Other preparations of a name have a number behind it, and only preparing finds out which one a node's is.
    """
    return "".join(
        _mark(folder)
        for folder in sorted(_SEEN)
        if name is None or folder == name or (folder.parent == name.parent and folder.name.startswith(f"{name.name}-"))
    )


def _mark(folder: Path) -> str:
    seen = _SEEN[folder]
    now = _state(folder)
    # with the mark before, as the same can happen twice: deleted, prepared again, deleted
    seen.given = seen.mark if now == seen.state else hashlib.sha256(f"{seen.mark} {now}".encode()).hexdigest()
    return seen.given


def remember(folder: Path) -> None:
    """Call it when ``folder`` has just been prepared."""
    seen = _SEEN.setdefault(folder, _Seen(""))
    seen.state, seen.mark = _state(folder), seen.given


def _state(folder: Path) -> str:
    """Names and stamps of pictures, captions, masks and manifest; ``missing`` where the dataset is gone."""
    if not (folder / HEADER).is_file():
        return "missing"
    digest = hashlib.sha256()
    for below in FOLDERS:
        try:
            with os.scandir(folder / below) as entries:
                wanted = [entry for entry in entries if entry.name.endswith(_KINDS) or entry.name in (HEADER, ROWS)]
                found = [(entry.name, file_stamp(entry.path)) for entry in wanted]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name, stamp in sorted(found):
            digest.update(f"{below}/{name} {stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
