"""A source image that may become part of the dataset: its content hash, and where its result is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...core.files.paths import safe_name
from ...core.files.reading import read_regular
from ..images.process import ProcessedImage
from ..layout import MASKS, REGULARISATION
from ..manifest.integrity import IntegrityCheck
from ..reading.sources import MAX_FILE_BYTES, Entry


@dataclass(frozen=True)
class Candidate:
    """``sha256``: of the source. ``key``: of the source, its mask and the settings that change pixels (``processing_key``)."""

    entry: Entry
    sha256: str
    key: str
    folder: Path

    @property
    def file(self) -> str:
        """The name of the PNG: readable, and unique by content."""
        stem = self.entry.name.rsplit("/", 1)[-1]
        stem = stem.rsplit(".", 1)[0] if self.entry.path is not None else stem
        return f"{safe_name(stem, fallback='image', limit=60)}-{self.key[:10]}.png"

    @property
    def relative_target(self) -> str:
        """The PNG's path below the dataset's folder, with forward slashes."""
        return f"{REGULARISATION}/{self.file}" if self.entry.is_regularisation else self.file

    @property
    def target(self) -> Path:
        """The path of the PNG."""
        return self.folder / self.relative_target

    @property
    def mask(self) -> Path:
        """The path of its mask."""
        return self.folder / MASKS / self.relative_target

    def is_intact(self, result: ProcessedImage, integrity: IntegrityCheck) -> bool:
        """Whether the files of ``result`` are there, and the image has the content that was written."""
        return integrity.is_unchanged(self.relative_target, result.sha256) and (not result.mask or self.mask.is_file())

    def preference(self, result: ProcessedImage) -> tuple[int, bool, bool]:
        """Sort key of near duplicates, the preferred first: larger, with a caption, not a JPEG."""
        return -result.original[0] * result.original[1], self.entry.caption is None, result.format == "JPEG"

    def read_mask(self) -> bytes | str | None:
        """The bytes of the mask beside the source, None without one; a text says why it cannot be read."""
        return None if self.entry.mask is None else mask_bytes(self.entry.mask)

    def read(self) -> bytes | Image.Image | str:
        """The file's bytes or the image of a batch; a text says why it cannot be read or that it changed."""
        if self.entry.path is None:
            return self.entry.image if self.entry.image is not None else "has no content"
        try:
            data = read_regular(self.entry.path, MAX_FILE_BYTES)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return data if hashlib.sha256(data).hexdigest() == self.sha256 else "changed while it was being prepared; run again"


def mask_bytes(path: Path) -> bytes | str:
    """The file's bytes, or a text that says why it cannot be read."""
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
