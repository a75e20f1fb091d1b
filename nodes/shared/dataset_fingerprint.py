"""Fingerprints of prepared datasets, so that Dataset Prep runs again when its dataset was edited or deleted.

ComfyUI asks for the fingerprint of a node before it runs the node, and caches the result under it. The state of the folder alone cannot
be the fingerprint, because the node itself changes the folder. So each folder has a mark that changes only when the folder differs from
what the last preparation left.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ...trainer.core.files.reading import file_stamp
from ...trainer.dataset.layout import FOLDERS, HEADER, ROWS

_EXTENSIONS = (".png", ".txt")


@dataclass
class _PreparedFolder:
    """``state`` and ``mark`` when it was last prepared, and the mark at the last request."""

    state: str
    mark: str = ""
    current_mark: str = ""


_FOLDERS: dict[Path, _PreparedFolder] = {}  # of this process only: after a restart, ComfyUI has no cached results either


def dataset_fingerprint(name: Path | None) -> str:
    """Text that changes when a dataset of this ``name`` differs from what the last ``record_dataset`` saw; None stands for any name.

    It covers all datasets whose names differ only in the number at the end, because the node's own is known only after preparing.
    """
    return "".join(
        _current_mark(folder)
        for folder in sorted(_FOLDERS)
        if name is None or folder == name or (folder.parent == name.parent and folder.name.startswith(f"{name.name}-"))
    )


def record_dataset(folder: Path) -> None:
    """Record the state of a ``folder`` that has just been prepared."""
    known = _FOLDERS.setdefault(folder, _PreparedFolder(""))
    known.state, known.mark = _state(folder), known.current_mark


def _current_mark(folder: Path) -> str:
    known = _FOLDERS[folder]
    state = _state(folder)
    # hashed with the previous mark, because a state can occur twice: deleted, prepared again, deleted
    known.current_mark = known.mark if state == known.state else hashlib.sha256(f"{known.mark} {state}".encode()).hexdigest()
    return known.current_mark


def _state(folder: Path) -> str:
    """Names and stamps of images, captions, masks and manifest; ``missing`` without a dataset."""
    if not (folder / HEADER).is_file():
        return "missing"
    digest = hashlib.sha256()
    for below in FOLDERS:
        try:
            with os.scandir(folder / below) as entries:
                files = [entry for entry in entries if entry.name.endswith(_EXTENSIONS) or entry.name in (HEADER, ROWS)]
                stamps = [(entry.name, file_stamp(entry.path)) for entry in files]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name, stamp in sorted(stamps):
            digest.update(f"{below}/{name} {stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
