"""What earlier runs left in the dataset's folder, and what a person changed there since: that is never thrown away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ...core.counting import plural
from ...core.files.reading import read_regular
from ...core.files.writing import replace, write_atomic
from ..captions.caption_text import read_caption_text, tidy_lines
from ..images.signature import alike
from ..layout import LARGEST_MANIFEST, LARGEST_MASK, MASKS, ROWS, WORK, caption_file
from ..manifest.schema import parse_row

if TYPE_CHECKING:
    from ..images.process import Processed
    from ..manifest.integrity import Contents
    from .candidates import Job

WRITTEN = "captions.jsonl"  # in WORK: what captions were written, kept before they are
KEPT_CAPTIONS, KEPT_MASKS, KEPT_IMAGES = "kept-captions", "kept-masks", "kept-images"
_RETOUCHED = 64  # of 256 bits of the perceptual hash: half of what unrelated pictures differ in


@dataclass(frozen=True)
class EarlierRow:
    """A line of the manifest that is there, with what is needed to find a picture's earlier name."""

    file: str
    caption: str
    source: str
    source_sha256: str
    sha256: str
    mask: str
    mask_sha256: str
    is_regularisation: bool


@dataclass(frozen=True)
class Edit:
    """A caption written by hand under an earlier name. ``sure`` is False when only the source's name is the same."""

    file: str
    text: str
    sure: bool


class Earlier:
    """The manifest of the last finished run and the captions written since, by file. ``carried``: what lives on under a new name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = {row.file: row for row in _rows(folder)}
        self._listed = _read_written(folder / WORK / WRITTEN)
        self._written = {file: set(digests) for file, digests in self._listed.items()}
        for row in self.rows.values():
            self._written.setdefault(caption_file(row.file), set()).add(_digest(row.caption))
        self.carried: set[str] = set()
        self.notes: list[str] = []

    def names(self) -> set[str]:
        """The names (without folder) of the pictures and masks that the last finished run wrote."""
        return {name.rsplit("/", 1)[-1] for row in self.rows.values() for name in (row.file, row.mask) if name}

    def sha256(self, file: str) -> str:
        """The content of an image of the last finished run; empty for another file."""
        return self.rows[file].sha256 if file in self.rows else ""

    def wrote(self, file: str, caption: str) -> bool:
        """Whether a run of this program wrote this text into this caption file."""
        return _digest(caption) in self._written.get(file, ())

    def will_write(self, captions: Mapping[str, str]) -> None:
        """Remember what is about to be written: a run that is stopped must not make its captions look edited by hand."""
        for file, caption in captions.items():
            self._written.setdefault(file, set()).add(_digest(caption))
        self._save({file: self._written[file] for file in captions} | {f: d for f, d in self._written.items() if f not in captions})

    def forget_all_but(self, captions: Mapping[str, str]) -> None:
        """After a finished run only its own captions matter."""
        self._save({file: {_digest(caption)} for file, caption in captions.items()})

    def edits(
        self, jobs: Sequence[Job], known: Mapping[str, Processed], repeats: Mapping[str, Sequence[Job]] | None = None
    ) -> dict[str, Edit]:
        """Caption file -> the text that a person wrote for this source when its picture had another name.

        The same content counts first, then the same name: when other sources of this folder stayed, or when the two look alike,
        because ``1.png`` of another collection is another picture. ``repeats``: what was left out for a job, by the job's key; the text
        of such an image goes to the one that stays, unless that has one of its own.
        """
        present = {(job.entry.is_regularisation, job.sha256) for job in jobs}
        by_content = {(row.is_regularisation, row.source_sha256): row for row in self.rows.values()}
        gone = [row for row in self.rows.values() if (row.is_regularisation, row.source_sha256) not in present]
        by_name = {(row.is_regularisation, row.source): row for row in gone}
        same_collection = len(gone) < len(self.rows)
        looks = {done.source_sha256: done.signature for done in known.values() if done.signature}
        found: dict[str, Edit] = {}
        for job in jobs:
            file = job.target.relative_to(self._folder).as_posix()
            for left_out in (repeats or {}).get(job.key, ()):
                row = by_content.get((left_out.entry.is_regularisation, left_out.sha256))
                text = None if row is None else self._edited(caption_file(row.file))
                if row is not None and text is not None and self._edited(caption_file(file)) is None:
                    found[caption_file(file)] = Edit(caption_file(row.file), text, sure=True)
                    break
            if file in self.rows:
                continue
            row = by_content.get((job.entry.is_regularisation, job.sha256))
            sure = row is not None
            if row is None:
                row = by_name.get((job.entry.is_regularisation, job.entry.name))
                if row is None or not (same_collection or alike(looks.get(row.source_sha256), looks.get(job.sha256), _RETOUCHED)):
                    continue
            text = self._edited(caption_file(row.file))
            if text is not None:
                found[caption_file(file)] = Edit(caption_file(row.file), text, sure)
        return found

    def carry_masks(self, kept: Sequence[tuple[Job, Processed]]) -> None:
        """Masks that were painted by hand go with their picture when its pixels are the same under another name."""
        painted = {(row.is_regularisation, row.sha256): row for row in self.rows.values() if row.mask}
        for job, done in kept:
            row = painted.get((job.entry.is_regularisation, done.sha256))
            if row is None or not done.mask or job.target.relative_to(self._folder).as_posix() in self.rows:
                continue
            data = _bytes(self._folder / row.mask)
            if data is None or _sha256(data) == row.mask_sha256:
                continue
            present = _bytes(job.mask)
            if present is not None and _sha256(present) == done.mask_sha256:
                write_atomic(job.mask, data)
                present = data
            if present == data:
                self.carried.add(row.mask)

    def set_aside_mask(self, path: Path, known: Processed | None) -> Path | None:
        """Move a mask away that is about to be written over, unless it is what ``known`` says was written."""
        data = _bytes(path)
        if data is None or (known is not None and _sha256(data) == known.mask_sha256):
            return None
        return self._put_aside(path, KEPT_MASKS)

    def set_aside_images(self, paths: Sequence[Path]) -> None:
        """Move images away that somebody changed, before they are made again from their sources; with a warning."""
        if not paths:
            return
        names = ", ".join(path.name for path in paths[:5]) + (", …" if len(paths) > 5 else "")
        for path in paths:
            self._put_aside(path, KEPT_IMAGES)
        changed = plural(len(paths), "image")
        verb = "was" if len(paths) == 1 else "were"
        self.notes.append(
            f"{changed} in the dataset's folder changed after preparing and {verb} made again from the source: {names}. What was there "
            f"is in {self._folder / WORK / KEPT_IMAGES}. To train on it, change the source."
        )

    def bring_back_mask(self, aside: Path, path: Path, known: Processed | None, done: Processed) -> None:
        """Undo ``set_aside_mask`` when the picture came out the same; otherwise the mask stays where it is, with a warning."""
        file = path.relative_to(self._folder / MASKS).as_posix()
        row = self.rows.get(file)
        before = known.sha256 if known is not None else row.sha256 if row is not None else ""
        data = _bytes(aside)
        if done.mask and data is not None and _sha256(data) == done.mask_sha256:
            aside.unlink()
        elif done.mask and before == done.sha256:
            replace(aside, path)
        else:
            self._note(KEPT_MASKS, [aside])

    def remove(self, paths: Mapping[str, Path], known: Mapping[str, Processed], contents: Contents) -> None:
        """Remove files of ours (by name below the folder) that nobody changed; the others move to ``.prepare``, with a warning."""
        masks = {row.mask_sha256 for row in self.rows.values()} | {done.mask_sha256 for done in known.values()}
        aside: dict[str, list[Path]] = {}
        for file, path in paths.items():
            if file in self.carried:
                kind = ""
            elif file.endswith(".txt"):
                text = _caption(path)
                kind = "" if text is None or self.wrote(file, text) else KEPT_CAPTIONS
            elif file.startswith(f"{MASKS}/"):
                data = _bytes(path)
                kind = "" if data is None or _sha256(data) in masks else KEPT_MASKS
            else:
                kind = "" if file not in self.rows or contents.is_as_prepared(file, self.rows[file].sha256) else KEPT_IMAGES
            if kind:
                aside.setdefault(kind, []).append(self._put_aside(path, kind))
            else:
                path.unlink(missing_ok=True)
        for kind, moved in aside.items():
            self._note(kind, moved)

    def _edited(self, file: str) -> str | None:
        text = _caption(self._folder / file)
        return None if text is None or self.wrote(file, text) else text

    def _put_aside(self, path: Path, kind: str) -> Path:
        place = self._folder / WORK / kind
        place.mkdir(parents=True, exist_ok=True)
        target, number = place / path.name, 1
        while target.exists():
            number += 1
            target = place / f"{path.stem} ({number}){path.suffix}"
        replace(path, target)
        return target

    def _note(self, kind: str, moved: Sequence[Path]) -> None:
        what = {KEPT_CAPTIONS: "caption", KEPT_MASKS: "mask", KEPT_IMAGES: "image"}[kind]
        verb = "belongs" if len(moved) == 1 else "belong"
        self.notes.append(
            f"{plural(len(moved), what)} changed by hand {verb} to no source image any more, for example {moved[0].name}: "
            f"moved to {self._folder / WORK / kind}."
        )

    def _save(self, written: Mapping[str, set[str]]) -> None:
        if written != self._listed:
            lines = (json.dumps({"file": file, "sha256": sorted(digests)}) + "\n" for file, digests in written.items())
            write_atomic(self._folder / WORK / WRITTEN, "".join(lines))
            self._listed = {file: set(digests) for file, digests in written.items()}


def _rows(folder: Path) -> Iterator[EarlierRow]:
    for line in _lines(folder / ROWS):
        try:
            row = parse_row(line)
        except ValidationError:
            continue
        yield EarlierRow(
            file=row.file, caption=row.caption, source=row.source, source_sha256=row.source_sha256, sha256=row.sha256,
            mask=row.mask or "", mask_sha256=row.mask_sha256, is_regularisation=row.is_regularisation,
        )  # fmt: skip


def _lines(path: Path) -> list[bytes]:
    """None where there is no such file, or a pipe in its place."""
    try:
        return read_regular(path, LARGEST_MANIFEST).splitlines()
    except OSError:
        return []


def _read_written(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in _lines(path):
        try:
            record = json.loads(line)
            found[str(record["file"])] = {str(digest) for digest in record["sha256"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _caption(path: Path) -> str | None:
    try:
        return read_caption_text(path)[0]
    except OSError:
        return None


def _bytes(path: Path) -> bytes | None:
    try:
        return read_regular(path, LARGEST_MASK)
    except OSError:
        return None


def _digest(caption: str) -> str:
    """Short: it tells the few captions of one file apart."""
    return _sha256(tidy_lines(caption).encode("utf-8", "replace"))[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
