"""Whether the images of a prepared dataset are still the ones that were prepared; their content decides.

Size, times and inode of each file whose content was read are kept in ``.prepare/verified.jsonl``. When one of them changes, the content
is read again.
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
from ...core.messages import File, Message
from ..layout import LARGEST_MANIFEST, WORK
from .items import Dataset, Item

VERIFIED = "verified.jsonl"  # in WORK
_LARGEST = 1 << 30  # bytes of an image
_MAX_NAMES = 5  # in a message


class IntegrityCheck:
    """Checks the images below ``folder``. ``full``: read every image, whatever is recorded about it."""

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        self._folder = folder
        self._known = {} if full else _read(folder / WORK / VERIFIED)
        self._stored = dict(self._known)

    def is_unchanged(self, file: str, sha256: str) -> bool:
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

    def record(self, file: str, sha256: str) -> None:
        """Record a file that was just written."""
        with suppress(OSError):
            self._known[file] = (file_stamp(self._folder / file), sha256)

    def save(self, files: Iterable[str]) -> None:
        """Store what is known of ``files`` and forget the others. Where the folder is read-only, nothing is stored."""
        known = {file: self._known[file] for file in files if file in self._known}
        if known == self._stored:
            return
        lines = (json.dumps({"file": file, "stamp": stamp, "sha256": digest}) + "\n" for file, (stamp, digest) in known.items())
        with suppress(OSError):
            remove_abandoned(self._folder / WORK)
            write_atomic(self._folder / WORK / VERIFIED, "".join(lines))
            self._stored = known


def changed_images(dataset: Dataset, *, full: bool = False) -> list[Item]:
    """The images of one dataset (not a combined one) that differ from the prepared ones. ``full``: see ``IntegrityCheck``."""
    check = IntegrityCheck(dataset.path, full=full)
    changed = [item for item in dataset.items if not check.is_unchanged(item.file, item.sha256)]
    check.save(item.file for item in dataset.items)
    return changed


def require_unchanged(dataset: Dataset) -> None:
    """Raises UserError when an image was changed after it was prepared."""
    changed = changed_images(dataset)
    if changed:
        raise changed_images_error(dataset, changed)


def changed_images_error(dataset: Dataset, changed: Sequence[Item]) -> UserError:
    """An error that names the ``changed`` images and what to do about them."""
    names = ", ".join(item.file for item in changed[:_MAX_NAMES]) + (", …" if len(changed) > _MAX_NAMES else "")
    count = "1 image differs" if len(changed) == 1 else f"{len(changed)} images differ"
    return UserError(
        Message("The dataset ", File(str(dataset.path)), f" changed after it was prepared: {count} from its manifest ({names})."),
        "Run Dataset Prep again: it makes these images again from their sources and keeps the changed ones in .prepare/kept-images. "
        "To train on a changed image, change its source.",
        kind="dataset",
    )


def _read(path: Path) -> dict[str, tuple[str, str]]:
    known: dict[str, tuple[str, str]] = {}
    with suppress(OSError):
        for line in read_regular(path, LARGEST_MANIFEST).splitlines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                row = json.loads(line)
                known[str(row["file"])] = (str(row["stamp"]), str(row["sha256"]))
    return known
