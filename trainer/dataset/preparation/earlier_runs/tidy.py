"""Files in the dataset's folder that do not belong there; only files that this program wrote are ever removed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ....core.counting import plural
from ....core.files.writing import remove_abandoned
from ...images.decode import EXTENSIONS
from ...layout import FOLDERS, WORK, caption_file
from ...manifest.items import Row


def remove_partials(folder: Path) -> None:
    """Remove incomplete files of a run that was killed. A training may be writing to the work folder at the same time."""
    remove_abandoned(folder / WORK)
    for name in FOLDERS:
        for path in _files(folder / name):
            if path.name.startswith(".partial-"):
                path.unlink(missing_ok=True)


def stale_files(folder: Path, rows: Sequence[Row], written: set[str]) -> dict[str, Path]:
    """Images, captions and masks that are no longer in the manifest, by their path below ``folder``.

    ``written``: names of images and masks that this and earlier runs wrote.
    """
    wanted = _wanted(rows)
    written = written | {caption_file(name) for name in written}
    stale: dict[str, Path] = {}
    for name in FOLDERS:
        for path in _files(folder / name):
            relative = f"{name}/{path.name}" if name else path.name
            if path.name in written and relative not in wanted:
                stale[relative] = path
    return stale


def foreign_images_warning(folder: Path, rows: Sequence[Row]) -> list[str]:
    """A warning about images that somebody put into the dataset's folder: they are not trained."""
    wanted = _wanted(rows)
    others = [path.name for path in _files(folder) if path.suffix.lower() in EXTENSIONS and path.name not in wanted]
    if not others:
        return []
    verb = "is" if len(others) == 1 else "are"
    return [
        f"{plural(len(others), 'image')} in the dataset's folder, for example {others[0]}, {verb} not part of it: "
        "put new images into the source folder and prepare again."
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
