"""A source picture on its way into the dataset: its content's hash, and the address of its result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...core.files.paths import safe_name
from ...core.files.reading import read_regular
from ..images.process import Processed
from ..layout import MASKS, REGULARISATION
from ..manifest.integrity import Contents
from ..reading.sources import MAX_FILE_BYTES, Entry


@dataclass(frozen=True)
class Job:
    """``sha256`` is the source's, ``key`` its content address together with the settings that change pixels."""

    entry: Entry
    sha256: str
    key: str
    folder: Path

    @property
    def file(self) -> str:
        """The PNG's name: readable, and unique by content."""
        stem = self.entry.name.rsplit("/", 1)[-1]
        stem = stem.rsplit(".", 1)[0] if self.entry.path is not None else stem
        return f"{safe_name(stem, fallback='image', limit=60)}-{self.key[:10]}.png"

    @property
    def target(self) -> Path:
        """Where the PNG goes."""
        return self.folder / REGULARISATION / self.file if self.entry.is_regularisation else self.folder / self.file

    @property
    def mask(self) -> Path:
        """Where its mask goes."""
        return self.folder / MASKS / self.target.relative_to(self.folder)

    def intact(self, done: Processed, contents: Contents) -> bool:
        """The result lies where it should, with the content that was written."""
        return contents.is_as_prepared(self.target.relative_to(self.folder).as_posix(), done.sha256) and (
            not done.mask or self.mask.is_file()
        )

    def worth(self, done: Processed) -> tuple[int, bool, bool]:
        """Sorts the better of two like pictures first: the larger, the one with a caption, the one that is no JPEG."""
        return -done.original[0] * done.original[1], self.entry.caption is None, done.format == "JPEG"

    def read_mask(self) -> bytes | str | None:
        """The bytes of the mask that lies beside the source; a text when it cannot be read."""
        return None if self.entry.mask is None else mask_bytes(self.entry.mask)

    def read(self) -> bytes | Image.Image | str:
        """The file's bytes or the graph's picture; a text when it cannot be read or is another one than before."""
        if self.entry.path is None:
            return self.entry.image if self.entry.image is not None else "has no content"
        try:
            data = read_regular(self.entry.path, MAX_FILE_BYTES)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return data if hashlib.sha256(data).hexdigest() == self.sha256 else "changed while it was being prepared; run again"


def mask_bytes(path: Path) -> bytes | str:
    """The file's bytes, or why it cannot be read."""
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def content_hash(entry: Entry) -> tuple[str, str]:
    """(SHA-256, "") of a source's content, or ("", why it cannot be read)."""
    if entry.image is not None:
        digest = hashlib.sha256(f"{entry.image.mode} {entry.image.size}".encode())
        digest.update(entry.image.tobytes())
        return digest.hexdigest(), ""
    if entry.path is None:
        return "", "has no content"
    try:
        return hashlib.sha256(read_regular(entry.path, MAX_FILE_BYTES)).hexdigest(), ""
    except OSError as error:
        return "", f"the file cannot be read: {error.strerror}"
