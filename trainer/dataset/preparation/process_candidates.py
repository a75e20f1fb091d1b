"""Making the images of a dataset: new and changed ones are processed, near duplicates are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...config.prepare_settings import PrepareSettings
from ...core.work.parallel import ordered_map
from ..images.process import ProcessedImage, Upscaler, process_image
from ..images.signature import parse_signature
from ..manifest.integrity import IntegrityCheck
from ..report.summary import Rejection, SimilarPair
from .candidates import Candidate
from .duplicates.identical_files import take_captions_of_duplicates
from .duplicates.near_duplicates import NearDuplicates, find_near_duplicates
from .earlier_runs.journal import Journal
from .earlier_runs.previous_run import PreviousRun
from .preparation_progress import Progress

CHANGED = "changed"  # reason of a source that cannot be read again or is another one than before; not kept in the journal


@dataclass
class ImageSet:
    """``kept``: the images of the dataset with their results, in order. ``duplicates``: images left out, by the key of what stays."""

    kept: list[tuple[Candidate, ProcessedImage]] = field(default_factory=list)
    duplicates: dict[str, list[Candidate]] = field(default_factory=dict)
    similar: list[SimilarPair] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reused: int = 0

    def reject(self, candidate: Candidate, result: ProcessedImage) -> None:
        """Note why ``candidate`` is left out."""
        self.rejected.append(Rejection(candidate.entry.name, result.reason, result.message))


@dataclass(frozen=True)
class CandidateProcessor:
    """Processes candidates for one dataset folder, several at a time."""

    folder: Path
    settings: PrepareSettings
    journal: Journal
    integrity: IntegrityCheck
    previous: PreviousRun
    upscaler: Upscaler | None
    progress: Progress
    should_stop: Callable[[], bool] | None
    workers: int | None

    def process(self, candidates: Sequence[Candidate]) -> ImageSet:
        """Process what is new, leave out near duplicates, and make images again that are missing or were changed.

        Raises UserError when an image cannot be written, and Cancelled.
        """
        results = self.journal.results
        images = ImageSet()
        new = [candidate for candidate in candidates if not _is_usable(results.get(candidate.key))]
        self.previous.set_aside_images([candidate.target for candidate in candidates if self._was_changed(candidate)])
        self._run(new)
        usable: list[Candidate] = []
        for candidate in candidates:
            if results[candidate.key].reason:
                images.reject(candidate, results[candidate.key])
            else:
                usable.append(candidate)
        near = find_near_duplicates(usable, results, self.folder, self.settings, self.should_stop)
        images.similar = near.similar
        kept = _without_near_duplicates(usable, near, images)
        lost = [candidate for candidate in kept if not candidate.is_intact(results[candidate.key], self.integrity)]
        self._run(lost)
        made = {candidate.key for candidate in (*new, *lost)}
        images.reused = sum(candidate.key not in made for candidate in kept)
        for candidate in kept:
            if results[candidate.key].reason:  # it could not be made a second time
                images.reject(candidate, results[candidate.key])
            else:
                images.kept.append((candidate, results[candidate.key]))
        return images

    def _was_changed(self, candidate: Candidate) -> bool:
        """Whether somebody changed the prepared image since the last run."""
        known = self.journal.results.get(candidate.key)
        sha256 = known.sha256 if known is not None else self.previous.sha256(candidate.relative_target)
        return bool(sha256) and candidate.target.is_file() and not self.integrity.is_unchanged(candidate.relative_target, sha256)

    def _run(self, candidates: Sequence[Candidate]) -> None:
        known = dict(self.journal.results)
        results = ordered_map(
            lambda candidate: self._process_one(candidate, known.get(candidate.key)),
            candidates,
            workers=self.workers,
            should_stop=self.should_stop,
        )
        for number, (candidate, result) in enumerate(zip(candidates, results, strict=True), 1):
            if result.reason == CHANGED:
                self.journal.results[result.key] = result
            elif result.reason:
                self.journal.add(result)
            self.progress(number, len(candidates), candidate.entry.name)

    def _process_one(self, candidate: Candidate, known: ProcessedImage | None) -> ProcessedImage:
        data = candidate.read()
        if isinstance(data, str):
            return ProcessedImage(candidate.key, candidate.sha256, reason=CHANGED, message=data)
        mask_aside = self.previous.set_aside_mask(candidate.mask, known)
        result = process_image(
            data, key=candidate.key, source_sha256=candidate.sha256, target=candidate.target, mask=candidate.mask,
            settings=self.settings, upscaler=self.upscaler, before_writing=self.journal.add, source_mask=candidate.read_mask(),
        )  # fmt: skip
        if result.file:
            self.integrity.record(candidate.relative_target, result.sha256)
        if mask_aside is not None:
            self.previous.restore_mask(mask_aside, candidate.mask, known, result)
        return result


def _without_near_duplicates(usable: Sequence[Candidate], near: NearDuplicates, images: ImageSet) -> list[Candidate]:
    """The candidates that stay, with captions of duplicates where they have none; the others are noted in ``images``."""
    kept: list[Candidate] = []
    pairs: list[tuple[Candidate, Candidate]] = []
    for candidate in usable:
        stays = near.replaced_by.get(candidate.key)
        if stays is None:
            kept.append(candidate)
            continue
        pairs.append((candidate, stays))
        images.duplicates.setdefault(stays.key, []).append(candidate)
        images.rejected.append(Rejection(candidate.entry.name, "near duplicate", f"looks the same as {stays.entry.name}"))
    kept, warnings = take_captions_of_duplicates(kept, pairs)
    images.warnings += warnings
    return kept


def _is_usable(result: ProcessedImage | None) -> bool:
    """Whether a result of an earlier run can be used.

    Truncated images are tried again, which costs little: an earlier version took images with broken EXIF for truncated. So are images
    whose signature has the form of an earlier version.
    """
    if result is None or result.reason == "truncated":
        return False
    return bool(result.reason) or parse_signature(result.signature) is not None
