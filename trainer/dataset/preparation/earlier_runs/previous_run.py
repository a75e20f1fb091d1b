"""What earlier runs wrote into the dataset's folder, and what the user changed there since, which is never deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....core.counting import plural
from ....core.files.reading import read_regular
from ....core.files.writing import replace, write_atomic
from ...captions.caption_text import read_caption_text, tidy_lines
from ...layout import LARGEST_MASK, MASKS, REGULARISATION, WORK, caption_file
from .earlier_rows import RowMatcher, earlier_rows, lines_of

if TYPE_CHECKING:
    from ...images.process import ProcessedImage
    from ...manifest.integrity import IntegrityCheck
    from ..candidates import Candidate

WRITTEN = "captions.jsonl"  # in WORK: hashes of captions, written before the captions themselves
KEPT_CAPTIONS, KEPT_MASKS, KEPT_IMAGES = "kept-captions", "kept-masks", "kept-images"


@dataclass(frozen=True)
class Edit:
    """A caption edited by hand under an earlier file name. ``sure``: the source is the same by content, not only by name."""

    file: str
    text: str
    sure: bool


class PreviousRun:
    """The manifest of the last finished run and the captions written since. ``carried``: edited files whose content has a new name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = {row.file: row for row in earlier_rows(folder)}
        self._stored = _read_written(folder / WORK / WRITTEN)
        self._written = {file: set(digests) for file, digests in self._stored.items()}
        for row in self.rows.values():
            self._written.setdefault(caption_file(row.file), set()).add(_digest(row.caption))
        self.carried: set[str] = set()
        self.warnings: list[str] = []

    def names(self) -> set[str]:
        """Names, without folder, of the images and masks that the last finished run wrote."""
        return {name.rsplit("/", 1)[-1] for row in self.rows.values() for name in (row.file, row.mask) if name}

    def sha256(self, file: str) -> str:
        """SHA-256 of an image of the last finished run; empty for other files."""
        return self.rows[file].sha256 if file in self.rows else ""

    def wrote(self, file: str, caption: str) -> bool:
        """Whether a run of this program wrote this caption into this file."""
        return _digest(caption) in self._written.get(file, ())

    def will_write(self, captions: Mapping[str, str]) -> None:
        """Record captions before they are written, so that captions of a stopped run do not look edited by hand."""
        for file, caption in captions.items():
            self._written.setdefault(file, set()).add(_digest(caption))
        self._save({file: self._written[file] for file in captions} | {f: d for f, d in self._written.items() if f not in captions})

    def forget_all_but(self, captions: Mapping[str, str]) -> None:
        """Record the captions of a finished run and forget all others."""
        self._save({file: {_digest(caption)} for file, caption in captions.items()})

    def edits(
        self,
        candidates: Sequence[Candidate],
        results: Mapping[str, ProcessedImage],
        duplicates: Mapping[str, Sequence[Candidate]] | None = None,
    ) -> dict[str, Edit]:
        """Caption file -> the caption that the user wrote for the same source when its image had another name.

        ``duplicates``: images left out, by the key of the candidate that stays. Their edited captions go to it, unless it has one itself.
        """
        matcher = RowMatcher(self.rows, candidates, results)
        edits: dict[str, Edit] = {}
        for candidate in candidates:
            file = caption_file(candidate.relative_target)
            for left_out in (duplicates or {}).get(candidate.key, ()):
                row = matcher.by_content(left_out)
                text = None if row is None else self._edited(caption_file(row.file))
                if row is not None and text is not None and self._edited(file) is None:
                    edits[file] = Edit(caption_file(row.file), text, sure=True)
                    break
            if candidate.relative_target in self.rows:
                continue
            same = matcher.by_content(candidate)
            row = same or matcher.by_name(candidate)
            text = None if row is None else self._edited(caption_file(row.file))
            if row is not None and text is not None:
                edits[file] = Edit(caption_file(row.file), text, sure=same is not None)
        return edits

    def carry_masks(self, kept: Sequence[tuple[Candidate, ProcessedImage]]) -> None:
        """Copy a mask that was painted by hand when its image has the same pixels under another name."""
        painted = {(row.is_regularisation, row.sha256): row for row in self.rows.values() if row.mask}
        for candidate, result in kept:
            row = painted.get((candidate.entry.is_regularisation, result.sha256))
            if row is None or not result.mask or candidate.relative_target in self.rows:
                continue
            data = _bytes(self._folder / row.mask)
            if data is None or _sha256(data) == row.mask_sha256:
                continue
            present = _bytes(candidate.mask)
            if present is not None and _sha256(present) == result.mask_sha256:
                write_atomic(candidate.mask, data)
                present = data
            if present == data:
                self.carried.add(row.mask)

    def set_aside_mask(self, path: Path, known: ProcessedImage | None) -> Path | None:
        """Move away a mask that is about to be overwritten, unless it is the one that ``known`` describes."""
        data = _bytes(path)
        if data is None or (known is not None and _sha256(data) == known.mask_sha256):
            return None
        return self._put_aside(path, KEPT_MASKS)

    def set_aside_images(self, paths: Sequence[Path]) -> None:
        """Move away images that the user changed, before they are made again from their sources; adds a warning."""
        if not paths:
            return
        names = ", ".join(path.name for path in paths[:5]) + (", …" if len(paths) > 5 else "")
        for path in paths:
            self._put_aside(path, KEPT_IMAGES)
        changed = plural(len(paths), "image")
        verb = "was" if len(paths) == 1 else "were"
        self.warnings.append(
            f"{changed} in the dataset's folder changed after preparing and {verb} made again from the source: {names}. The changed "
            f"version is in {self._folder / WORK / KEPT_IMAGES}. To train on it, change the source."
        )

    def restore_mask(self, aside: Path, path: Path, known: ProcessedImage | None, result: ProcessedImage) -> None:
        """Undo ``set_aside_mask`` when the image came out the same; otherwise the mask stays set aside, with a warning."""
        file = path.relative_to(self._folder / MASKS).as_posix()
        row = self.rows.get(file)
        before = known.sha256 if known is not None else row.sha256 if row is not None else ""
        data = _bytes(aside)
        if result.mask and data is not None and _sha256(data) == result.mask_sha256:
            aside.unlink()
        elif result.mask and before == result.sha256:
            replace(aside, path)
        else:
            self._warn_set_aside(KEPT_MASKS, [aside])

    def remove(self, paths: Mapping[str, Path], written: Collection[ProcessedImage], integrity: IntegrityCheck) -> None:
        """Remove files of ours (path below the folder -> path); those that the user changed move to ``.prepare``, with a warning.

        ``written``: what was written since the last finished run.
        """
        masks = {row.mask_sha256 for row in self.rows.values()} | {result.mask_sha256 for result in written}
        images: dict[str, set[str]] = {file: {row.sha256} for file, row in self.rows.items()}
        for result in written:
            for file in (result.file, f"{REGULARISATION}/{result.file}"):
                images.setdefault(file, set()).add(result.sha256)
        aside: dict[str, list[Path]] = {}
        for file, path in paths.items():
            kind = self._edited_kind(file, path, masks, images.get(file, set()), integrity)
            if kind:
                aside.setdefault(kind, []).append(self._put_aside(path, kind))
            else:
                path.unlink(missing_ok=True)
        for kind, moved in aside.items():
            self._warn_set_aside(kind, moved)

    def _edited_kind(self, file: str, path: Path, masks: set[str], images: set[str], integrity: IntegrityCheck) -> str:
        """The folder in ``.prepare`` for a file that the user changed; empty for others.

        ``masks``: SHA-256 of all masks that were written; ``images``: of the images that were written to ``file``.
        """
        if file in self.carried:
            return ""
        if file.endswith(".txt"):
            text = _caption(path)
            return "" if text is None or self.wrote(file, text) else KEPT_CAPTIONS
        if file.startswith(f"{MASKS}/"):
            data = _bytes(path)
            return "" if data is None or _sha256(data) in masks else KEPT_MASKS
        return "" if any(integrity.is_unchanged(file, sha256) for sha256 in images) else KEPT_IMAGES

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

    def _warn_set_aside(self, kind: str, moved: Sequence[Path]) -> None:
        what = {KEPT_CAPTIONS: "caption", KEPT_MASKS: "mask", KEPT_IMAGES: "image"}[kind]
        verb = "belongs" if len(moved) == 1 else "belong"
        self.warnings.append(
            f"{plural(len(moved), what)} changed by hand no longer {verb} to a source image, for example {moved[0].name}: "
            f"moved to {self._folder / WORK / kind}."
        )

    def _save(self, written: Mapping[str, set[str]]) -> None:
        if written != self._stored:
            lines = (json.dumps({"file": file, "sha256": sorted(digests)}) + "\n" for file, digests in written.items())
            write_atomic(self._folder / WORK / WRITTEN, "".join(lines))
            self._stored = {file: set(digests) for file, digests in written.items()}


def _read_written(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in lines_of(path):
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
    """A short hash: it only distinguishes the few captions of one file."""
    return _sha256(tidy_lines(caption).encode("utf-8", "replace"))[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
