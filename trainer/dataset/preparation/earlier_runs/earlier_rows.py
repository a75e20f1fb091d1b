"""Rows of the manifest that an earlier run wrote, and which of them belongs to a source image of this run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ....core.files.reading import read_regular
from ...images.process import ProcessedImage
from ...images.signature import are_similar
from ...layout import LARGEST_MANIFEST, ROWS
from ...manifest.manifest_schema import parse_row
from ..candidates import Candidate

_RETOUCHED = 64  # of 256 bits of the perceptual hash; unrelated images differ in about 128


@dataclass(frozen=True)
class EarlierRow:
    """The part of a manifest row that finds the earlier name of an image."""

    file: str
    caption: str
    source: str
    source_sha256: str
    sha256: str
    mask: str
    mask_sha256: str
    is_regularisation: bool


class RowMatcher:
    """Finds the row that an earlier run wrote for the same source.

    The same content counts, and the same name of a source that is gone by content: when other sources of the folder stayed, or when the
    two look alike, because ``1.png`` of another collection is another image.
    """

    def __init__(self, rows: Mapping[str, EarlierRow], candidates: Sequence[Candidate], results: Mapping[str, ProcessedImage]) -> None:
        present = {(candidate.entry.is_regularisation, candidate.sha256) for candidate in candidates}
        gone = [row for row in rows.values() if (row.is_regularisation, row.source_sha256) not in present]
        self._by_content = {(row.is_regularisation, row.source_sha256): row for row in rows.values()}
        self._by_name = {(row.is_regularisation, row.source): row for row in gone}
        self._same_collection = len(gone) < len(rows)
        self._signatures = {result.source_sha256: result.signature for result in results.values() if result.signature}

    def by_content(self, candidate: Candidate) -> EarlierRow | None:
        """The row of the same source content."""
        return self._by_content.get((candidate.entry.is_regularisation, candidate.sha256))

    def by_name(self, candidate: Candidate) -> EarlierRow | None:
        """The row of the same source name, where it is likely the same image."""
        row = self._by_name.get((candidate.entry.is_regularisation, candidate.entry.name))
        if row is None or self._same_collection:
            return row
        before, now = self._signatures.get(row.source_sha256), self._signatures.get(candidate.sha256)
        return row if are_similar(before, now, _RETOUCHED) else None


def earlier_rows(folder: Path) -> Iterator[EarlierRow]:
    """The rows of the manifest in ``folder``; damaged ones are skipped."""
    for line in lines_of(folder / ROWS):
        try:
            row = parse_row(line)
        except ValidationError:
            continue
        yield EarlierRow(
            file=row.file, caption=row.caption, source=row.source, source_sha256=row.source_sha256, sha256=row.sha256,
            mask=row.mask or "", mask_sha256=row.mask_sha256, is_regularisation=row.is_regularisation,
        )  # fmt: skip


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file; empty where there is no regular file."""
    try:
        return read_regular(path, LARGEST_MANIFEST).splitlines()
    except OSError:
        return []
