"""Keeping the dataset's folder clean: only files that this program wrote are ever removed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...core.files.writing import remove_abandoned
from ..images.decode import EXTENSIONS
from ..layout import FOLDERS, WORK, caption_file
from ..manifest.items import Row


def remove_partials(folder: Path) -> None:
    """Delete half-written files of a killed run. In the work folder a training may be writing now."""
    remove_abandoned(folder / WORK)
    for name in FOLDERS:
        for path in _files(folder / name):
            if path.name.startswith(".partial-"):
                path.unlink(missing_ok=True)


def stale_files(folder: Path, rows: Sequence[Row], ours: set[str]) -> dict[str, Path]:
    """Pictures, captions and masks that are not in the manifest any more, by name below ``folder``.

    ``ours``: names that earlier runs wrote.
    """
    wanted = _wanted(rows)
    ours = ours | {caption_file(name) for name in ours}
    found: dict[str, Path] = {}
    for name in FOLDERS:
        for path in _files(folder / name):
            relative = f"{name}/{path.name}" if name else path.name
            if path.name in ours and relative not in wanted:
                found[relative] = path
    return found


def foreign_pictures(folder: Path, rows: Sequence[Row]) -> list[str]:
    """A warning when somebody put pictures into the dataset's folder: they are not trained on."""
    wanted = _wanted(rows)
    others = [path.name for path in _files(folder) if path.suffix.lower() in EXTENSIONS and path.name not in wanted]
    if not others:
        return []
    return [
        f"{len(others)} picture{'s' * (len(others) > 1)} in the dataset's folder, for example {others[0]}, are not part of it: "
        "put them into the source folder and prepare again."
    ]


def _wanted(rows: Sequence[Row]) -> set[str]:
    names = {row.item.file for row in rows} | {row.item.mask for row in rows if row.item.mask}
    return {name for name in names if name} | {caption_file(row.item.file) for row in rows}


def _files(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        yield folder / name
