"""From a source of images to a prepared dataset: the entry point of node and command line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...config.prepare_settings import PrepareSettings
from ...core.counting import plural
from ...core.errors import UserError
from ...core.messages import DatasetSetting, Message
from ..images.process import Upscaler, processing_key
from ..layout import caption_file
from ..manifest.integrity import IntegrityCheck
from ..manifest.items import Dataset
from ..reading.sources import natural_key
from ..report.summary import Rejection, Report
from .advice import warnings_for
from .candidates import Candidate, mask_bytes
from .captioning import caption_images
from .check_models import check_models
from .collect import CollectedSources, Source, collected_sources
from .duplicates.identical_files import without_duplicates
from .earlier_runs.journal import Journal
from .earlier_runs.output_folder import output_folder
from .earlier_runs.previous_run import PreviousRun
from .earlier_runs.tidy import foreign_images_warning, stale_files
from .preparation_progress import WAITING_FOR_FOLDER, Progress, no_progress
from .process_candidates import CandidateProcessor, ImageSet
from .write_dataset import manifest_row, write_dataset, write_report

_LEAVE_OUT = DatasetSetting("clean.leave_out")


@dataclass(frozen=True)
class PrepareResult:
    """``kept`` and ``reused`` count images; ``rejected`` lists the sources that were left out, with reasons; ``sources`` are the names of
    the files that the dataset's images come from."""

    dataset: Dataset
    report: Report
    kept: int
    rejected: tuple[Rejection, ...]
    reused: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Caller:
    """What the caller of a preparation passed besides its source and settings."""

    upscaler: Upscaler | None
    progress: Progress
    should_stop: Callable[[], bool] | None
    workers: int | None


def prepare_dataset(
    source: Source,
    out_root: Path,
    settings: PrepareSettings,
    *,
    regularisation: Source | None = None,
    upscaler: Upscaler | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    workers: int | None = None,
    inside: Sequence[Path] = (),
    replace_other: bool = False,
) -> PrepareResult:
    """Prepare a dataset in ``out_root/<trigger>_<class>`` and open it. Images that are already prepared are reused.

    Where a dataset of another source or with other settings has that name, this one gets a number behind its name (``output_folder.py``);
    with ``replace_other`` it replaces the other one. Preparing the same source with the same settings finds its folder again.

    ``source``: a folder, a zip or tar archive, one image file, or the images of an IMAGE batch; it is never changed.
    ``regularisation``: images that are trained with ``settings.regularisation_weight`` and without the trigger word.
    ``upscaler``: enlarges small images (RGB to RGB); it is called in the calling thread.
    ``inside``: links in a folder are followed only to files below one of these folders; empty: to anywhere.

    Raises UserError, and Cancelled when ``should_stop`` returned True.
    """
    started = time.monotonic()
    if "\x00" in str(out_root):
        raise UserError(
            f"The folder {str(out_root)!r} cannot be made: its name contains a NUL character.", "Choose another folder.", kind="path"
        )
    warnings = check_models(settings)
    out_root, progress, stop = Path(out_root), progress or no_progress, should_stop or (lambda: False)

    def waiting() -> None:
        progress(0, 1, WAITING_FOR_FOLDER)

    with (
        collected_sources(source, regularisation, out_root, settings, inside, progress, stop, waiting) as sources,
        output_folder(out_root, source, sources.identity, stop, waiting, replace_other=replace_other) as (folder, folder_warnings),
    ):
        # an upscale model belongs to the calling thread, because torch's inference mode is per thread
        caller = _Caller(upscaler, progress, should_stop, workers=0 if upscaler is not None else workers)
        return _prepare(sources, folder, settings, caller, [*folder_warnings, *warnings], started)


def _prepare(
    sources: CollectedSources, folder: Path, settings: PrepareSettings, caller: _Caller, warnings: list[str], started: float
) -> PrepareResult:
    """The steps of a preparation in its locked ``folder``."""
    previous, integrity, journal = PreviousRun(folder), IntegrityCheck(folder), Journal(folder)
    try:
        candidates, rejected, candidate_warnings = _candidates(sources, folder, settings)
        processor = CandidateProcessor(
            folder, settings, journal, integrity, previous, caller.upscaler, caller.progress, caller.should_stop, caller.workers
        )
        images = processor.process(candidates)
        rejected += images.rejected
        _require_images(images, rejected)

        edits = previous.edits([candidate for candidate, _ in images.kept], journal.results, images.duplicates)
        captions = caption_images(images.kept, folder, settings, previous, edits, caller.progress, caller.should_stop)
        previous.carry_masks(images.kept)

        caller.progress(len(candidates), len(candidates), "writing the manifest")
        rows = [
            manifest_row(candidate, result, caption, settings) for (candidate, result), caption in zip(images.kept, captions, strict=True)
        ]
        rejected.sort(key=lambda rejection: natural_key(rejection.source))
        dataset = write_dataset(folder, settings, rows, captions, rejected)
        written = previous.names() | journal.files()  # also what this run made and then left out
        previous.remove(stale_files(folder, rows, written), journal.written, integrity)
        previous.forget_all_but({caption_file(row.item.file): row.item.caption for row in rows})
        integrity.save(row.item.file for row in rows)

        warnings = [*sources.listing.warnings, *warnings, *candidate_warnings, *images.warnings, *previous.warnings]
        warnings += [*warnings_for(dataset, rows, captions, settings), *foreign_images_warning(folder, rows)]
        report = write_report(
            dataset, rows, reused=images.reused, rejected=rejected, similar=images.similar, warnings=warnings,
            seconds=time.monotonic() - started,
        )  # fmt: skip
        journal.compact({candidate.key for candidate in candidates})
    finally:
        journal.close()
    return PrepareResult(dataset, report, len(rows), tuple(rejected), images.reused, tuple(row.source for row in rows))


def _candidates(sources: CollectedSources, folder: Path, settings: PrepareSettings) -> tuple[list[Candidate], list[Rejection], list[str]]:
    """(a candidate for each source that can be read, without exact duplicates; rejections; warnings)."""
    warnings: list[str] = []
    rejected = [Rejection(*row) for row in sources.listing.rejected]
    leave_out = settings.clean.leave_out
    names = {entry.name for entry, _, _ in sources.hashed}
    if unknown := [name for name in leave_out if name not in names]:
        warnings.append(Message(_LEAVE_OUT, f" names files that the source does not have: {', '.join(unknown)}."))
    candidates: list[Candidate] = []
    for entry, digest, problem in sources.hashed:
        if entry.name in leave_out:
            rejected.append(Rejection(entry.name, "left out", Message("named in ", _LEAVE_OUT)))
            continue
        if problem:
            rejected.append(Rejection(entry.name, "unreadable", problem))
            continue
        mask = b"" if entry.mask is None else mask_bytes(entry.mask)
        key = processing_key(digest, settings, entry.is_regularisation, mask if isinstance(mask, bytes) else b"")
        candidates.append(Candidate(entry, digest, key, folder))
    kept, duplicates, conflicts = without_duplicates(candidates)
    return kept, rejected + duplicates, warnings + conflicts


def _require_images(images: ImageSet, rejected: Sequence[Rejection]) -> None:
    """Raises UserError when no image is left, or only regularisation images."""
    if any(not candidate.entry.is_regularisation for candidate, _ in images.kept):
        return
    reasons = Counter(rejection.reason for rejection in rejected)
    listing = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    example = Message(f" For example {rejected[0].source}: ", rejected[0].message, ".") if rejected else ""
    smaller = Message("Lower ", DatasetSetting("clean.min_side"), ", the smallest side of an image.")
    hint = smaller if reasons["too small"] else "Check that the files are complete images."
    message = Message(f"None of the {plural(len(rejected), 'image')} can be used: {listing}.", example)
    raise UserError(message, hint, kind="dataset")
