"""Whether the images of a prepared dataset are still those that were prepared. Their content decides.

Size, times and inode of a file whose content was read are remembered in ``.prepare/verified.jsonl``; a change of any of them has the
content read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ...core.errors import UserError
from ...core.files.reading import file_stamp, read_regular
from ...core.files.writing import remove_abandoned, write_atomic
from ..layout import WORK
from .items import Dataset, Item

VERIFIED = "verified.jsonl"  # in WORK
_LARGEST = 1 << 30  # bytes of an image


class Contents:
    """The images below ``folder``. ``full``: believe no file that was not read by this object."""

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        self._folder = folder
        self._known = {} if full else _read(folder / WORK / VERIFIED)
        self._listed = dict(self._known)

    def is_as_prepared(self, file: str, sha256: str) -> bool:
        """Whether ``file`` (relative to the folder) has this content. False for one that is missing or cannot be read."""
        path = self._folder / file
        try:
            stamp = file_stamp(path)
            if self._known.get(file) == (stamp, sha256):
                return True
            if hashlib.sha256(read_regular(path, _LARGEST)).hexdigest() != sha256:
                return False
        except OSError:
            return False
        self._known[file] = (stamp, sha256)
        return True

    def written(self, file: str, sha256: str) -> None:
        """Remember a file that was just written."""
        with suppress(OSError):
            self._known[file] = (file_stamp(self._folder / file), sha256)

    def save(self, files: Iterable[str]) -> None:
        """Remember what is known of ``files`` and forget the others. A folder that cannot be written is read in full every time."""
        known = {file: self._known[file] for file in files if file in self._known}
        if known == self._listed:
            return
        lines = (json.dumps({"file": file, "stamp": stamp, "sha256": digest}) + "\n" for file, (stamp, digest) in known.items())
        with suppress(OSError):
            remove_abandoned(self._folder / WORK)
            write_atomic(self._folder / WORK / VERIFIED, "".join(lines))
            self._listed = known


def changed_images(dataset: Dataset, *, full: bool = False) -> list[Item]:
    """The images that are not what was prepared, of one dataset that is not combined. ``full``: read every one."""
    contents = Contents(dataset.path, full=full)
    changed = [item for item in dataset.items if not contents.is_as_prepared(item.file, item.sha256)]
    contents.save(item.file for item in dataset.items)
    return changed


def require_as_prepared(dataset: Dataset) -> None:
    """Raises UserError when an image was changed after it was prepared."""
    changed = changed_images(dataset)
    if changed:
        raise changed_error(dataset, changed)


def changed_error(dataset: Dataset, changed: Sequence[Item]) -> UserError:
    """Names ``changed`` images and says what to do."""
    names = ", ".join(item.file for item in changed[:5]) + (", …" if len(changed) > 5 else "")
    count = "1 image is" if len(changed) == 1 else f"{len(changed)} images are"
    return UserError(
        f"The dataset {dataset.path} changed after it was prepared: {count} not what its manifest names ({names}).",
        "Run Dataset Prep again: it makes these images again from their sources and keeps the changed ones in .prepare/kept-images. "
        "To train on a changed image, change its source.",
        kind="dataset",
    )


def _read(path: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                row = json.loads(line)
                found[str(row["file"])] = (str(row["stamp"]), str(row["sha256"]))
    return found
