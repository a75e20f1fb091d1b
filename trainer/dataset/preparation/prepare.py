"""From a source of pictures to a prepared dataset: the one entry point of node and command line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.counting import plural
from ...core.errors import UserError
from ...core.work.parallel import ordered_map
from ..captions.tags import tag_frequency
from ..images.process import Processed, Upscaler, process, processing_key
from ..images.signature import read_signature
from ..layout import caption_file
from ..manifest.hashing import dataset_hash, hashed_header
from ..manifest.integrity import Contents
from ..manifest.items import Dataset, Item, Row
from ..manifest.read import open_dataset
from ..manifest.write import write_manifest
from ..reading import sources
from ..reading.sources import Found
from ..report.html_page import write_page
from ..report.summary import Doubt, Rejection, Report
from ..settings import PrepareSettings, dataset_folder_name
from .advice import warnings_for
from .candidates import Job, mask_bytes
from .captioning import Captioned, caption_all
from .check_models import check_models
from .collect import Hashed, Progress, Source, gathered
from .duplicates import with_captions_of_repeats, without_duplicates
from .folder_identity import own_folder
from .journal import Journal
from .near_duplicates import find_repeats
from .previous_run import Earlier
from .tidy import foreign_pictures, stale_files

WAITING = "waiting for another process that prepares the same dataset"


@dataclass(frozen=True)
class PrepareResult:
    """``kept`` and ``reused`` count pictures; ``rejected`` lists what was left out and why."""

    dataset: Dataset
    report: Report
    kept: int
    rejected: tuple[Rejection, ...]
    reused: int


def prepare(
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
    """Write ``out_root/<trigger>_<class>/`` and return it opened.

    A preparation of another source or with other settings that has this name already keeps it, and this one gets a number behind the
    name (see ``folder_identity.py``); with ``replace_other`` it is written over. The same preparation finds its folder again.
    ``source``: a folder, a zip or tar archive, one picture, or the pictures of an IMAGE batch; it is never changed.
    ``regularisation``: a second set, trained with ``settings.regularisation_weight`` and without the trigger word.
    ``upscaler``: makes small pictures larger (RGB to RGB); it is called in the calling thread.
    ``inside``: links in a folder are followed only to files below one of these; empty: to anywhere.
    Pictures that are done already are reused. Raises UserError, and Cancelled when ``should_stop`` returned True.
    """
    started = time.monotonic()
    if "\x00" in str(out_root):
        raise UserError(f"The folder {str(out_root)!r} cannot be made: it contains a NUL character.", "Choose another place.", kind="path")
    warnings = check_models(settings)
    out_root, tell, stop = Path(out_root), progress or _silent, should_stop or (lambda: False)

    def waiting() -> None:
        tell(0, 1, WAITING)

    with (
        gathered(source, regularisation, out_root, settings, inside, tell, stop, waiting) as found,
        own_folder(out_root, source, found.preparation, stop, waiting, replace_other=replace_other) as (folder, about_folder),
    ):
        run = _Run(folder, settings, upscaler, tell, should_stop, workers)
        run.warnings += [*about_folder, *warnings]
        return run.finish(found.found, found.hashed, started)


class _Run:
    """The steps of one preparation; each method is one."""

    def __init__(
        self, folder: Path, settings: PrepareSettings, upscaler: Upscaler | None, progress: Progress,
        should_stop: Callable[[], bool] | None, workers: int | None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.settings = settings
        self.upscaler = upscaler
        self.progress = progress
        self.should_stop = should_stop
        # an upscale model belongs to the thread that called us (torch's inference mode is a thread's own)
        self.workers = 0 if upscaler is not None else workers
        self.earlier = Earlier(folder)
        self.contents = Contents(folder)
        self.rejected: list[Rejection] = []
        self.warnings: list[str] = []
        self.reused = 0
        self.doubtful: list[Doubt] = []
        self.repeats: dict[str, list[Job]] = {}  # what was left out, by the key of what stays

    def finish(self, found: Found, hashed: Sequence[Hashed], started: float) -> PrepareResult:
        self.rejected += [Rejection(*row) for row in found.rejected]
        jobs = self.identify(hashed)
        journal = Journal(self.folder)
        ours = self.earlier.names() | journal.files()
        try:
            kept = self.make(jobs, journal)
            if not any(not job.entry.is_regularisation for job, _ in kept):
                raise _nothing_left(self.rejected)
            edits = self.earlier.edits([job for job, _ in kept], journal.known, self.repeats)
            captioned = caption_all(kept, self.folder, self.settings, self.earlier, edits, self.progress, self.should_stop)
            self.earlier.carry_masks(kept)
            ours |= journal.files()  # what this run made and then left out, too
            rows = [self.row(job, done, caption) for (job, done), caption in zip(kept, captioned, strict=True)]
            self.progress(len(jobs), len(jobs), "writing the manifest")
            dataset = self.write(rows, captioned)
            self.earlier.remove(stale_files(self.folder, rows, ours), journal.known, self.contents)
            self.earlier.forget_all_but({caption_file(row.item.file): row.item.caption for row in rows})
            self.contents.save(row.item.file for row in rows)
            report = self.report(dataset, rows, captioned, found, time.monotonic() - started)
            journal.compact({job.key for job in jobs})
        finally:
            journal.close()
        return PrepareResult(dataset, report, len(rows), tuple(self.rejected), self.reused)

    def identify(self, hashed: Sequence[Hashed]) -> list[Job]:
        """A job for each source that can be read; exact duplicates go."""
        jobs: list[Job] = []
        names = {entry.name for entry, _, _ in hashed}
        if unknown := [name for name in self.settings.clean.leave_out if name not in names]:
            self.warnings.append(f"clean.leave_out names what the source does not have: {', '.join(unknown)}.")
        for entry, digest, problem in hashed:
            if entry.name in self.settings.clean.leave_out:
                self.rejected.append(Rejection(entry.name, "left out", "named in clean.leave_out"))
                continue
            if problem:
                self.rejected.append(Rejection(entry.name, "unreadable", problem))
                continue
            mask = b"" if entry.mask is None else mask_bytes(entry.mask)
            key = processing_key(digest, self.settings, entry.is_regularisation, mask if isinstance(mask, bytes) else b"")
            jobs.append(Job(entry, digest, key, self.folder))
        kept, duplicates, warnings = without_duplicates(jobs)
        self.rejected += duplicates
        self.warnings += warnings
        return kept

    def make(self, jobs: Sequence[Job], journal: Journal) -> list[tuple[Job, Processed]]:
        """Process what is new, drop near duplicates, and make the pictures that are missing."""
        new = {job.key for job in jobs if not _is_known(journal.known.get(job.key))}
        self.earlier.set_aside_images([job.target for job in jobs if self._was_changed(job, journal)])
        self._process([job for job in jobs if job.key in new], journal)
        kept: list[Job] = []
        usable: list[Job] = []
        for job in jobs:
            done = journal.known[job.key]
            if done.reason:
                self.rejected.append(Rejection(job.entry.name, done.reason, done.message))
            else:
                usable.append(job)
        repeats = find_repeats(usable, journal.known, self.folder, self.settings, self.should_stop)
        self.doubtful = repeats.doubtful
        for job in usable:
            if job.key in repeats.stays:
                stays = repeats.stays[job.key]
                self.repeats.setdefault(stays.key, []).append(job)
                self.rejected.append(Rejection(job.entry.name, "near duplicate", f"looks the same as {stays.entry.name}"))
            else:
                kept.append(job)
        kept, warnings = with_captions_of_repeats(kept, [(job, repeats.stays[job.key]) for job in usable if job.key in repeats.stays])
        self.warnings += warnings
        lost = [job for job in kept if not job.intact(journal.known[job.key], self.contents)]
        self._process(lost, journal)
        self.reused = len(kept) - len(new.union(job.key for job in lost) & {job.key for job in kept})
        failed = {job.key for job in lost if journal.known[job.key].reason}
        for job in lost:
            if job.key in failed:
                done = journal.known[job.key]
                self.rejected.append(Rejection(job.entry.name, done.reason, done.message))
        return [(job, journal.known[job.key]) for job in kept if job.key not in failed]

    def _was_changed(self, job: Job, journal: Journal) -> bool:
        """Whether somebody changed the image that is there."""
        known, file = journal.known.get(job.key), job.target.relative_to(self.folder).as_posix()
        sha256 = known.sha256 if known is not None else self.earlier.sha256(file)
        return bool(sha256) and job.target.is_file() and not self.contents.is_as_prepared(file, sha256)

    def _process(self, jobs: Sequence[Job], journal: Journal) -> None:
        known = dict(journal.known)
        results = ordered_map(
            lambda job: self._work(job, known.get(job.key)), jobs, workers=self.workers, should_stop=self.should_stop
        )  # fmt: skip
        for number, (job, done) in enumerate(zip(jobs, results, strict=True), 1):
            if done.reason != "changed":
                journal.add(done)
            else:
                journal.known[done.key] = done
            self.progress(number, len(jobs), job.entry.name)

    def _work(self, job: Job, known: Processed | None) -> Processed:
        data = job.read()
        if isinstance(data, str):
            return Processed(job.key, job.sha256, reason="changed", message=data)
        aside = self.earlier.set_aside_mask(job.mask, known)
        done = process(
            data, key=job.key, source_sha256=job.sha256, target=job.target, mask=job.mask, settings=self.settings,
            upscaler=self.upscaler, source_mask=job.read_mask(),
        )  # fmt: skip
        if done.file:
            self.contents.written(job.target.relative_to(self.folder).as_posix(), done.sha256)
        if aside is not None:
            self.earlier.bring_back_mask(aside, job.mask, known, done)
        return done

    def row(self, job: Job, done: Processed, caption: Captioned) -> Row:
        """The manifest line; files that a renamed source left under its old name move to the new one."""
        entry = job.entry
        item = Item(
            file=job.target.relative_to(self.folder).as_posix(),
            sha256=done.sha256,
            caption=caption.prepared,
            width=done.size[0],
            height=done.size[1],
            original_size=done.original,
            crop_top_left=done.crop_top_left,
            crop_right=done.crop_right,
            repeats=entry.repeats * (1 if entry.is_regularisation else self.settings.repeats),
            mask=job.mask.relative_to(self.folder).as_posix() if done.mask else None,
            is_regularisation=entry.is_regularisation,
            weight=self.settings.regularisation_weight if entry.is_regularisation else 1.0,
        )
        return Row(item, done.mask_sha256, done.bytes, entry.name, job.sha256, done.format, caption.origin, done.steps)

    def write(self, rows: list[Row], captioned: Sequence[Captioned]) -> Dataset:
        """Write the manifest, and open the result."""
        settings = self.settings
        self.rejected.sort(key=lambda rejection: sources.natural_key(rejection.source))
        final = [replace(row.item, caption=caption.final) for row, caption in zip(rows, captioned, strict=True)]
        hashed = hashed_header(settings.trigger, settings.class_description, settings.resolution, settings.training)
        digest = dataset_hash(zip(final, [row.mask_sha256 for row in rows], strict=True), hashed)
        header = {
            "name": dataset_folder_name(settings),
            "hash": digest,
            **hashed,
            "settings": settings.model_dump(mode="json"),
            "rejected": [rejection.to_json() for rejection in self.rejected],
        }
        write_manifest(self.folder, header, rows)
        return open_dataset(self.folder)

    def report(self, dataset: Dataset, rows: list[Row], captioned: Sequence[Captioned], found: Found, seconds: float) -> Report:
        """The report, written as a page, too."""
        warnings = [*found.warnings, *self.warnings, *self.earlier.notes, *warnings_for(dataset, rows, captioned, self.settings)]
        warnings += foreign_pictures(self.folder, rows)
        report = Report(
            name=dataset.name, path=str(self.folder), hash=dataset.hash, trigger=dataset.trigger,
            class_description=dataset.class_description, resolution=dataset.resolution, kept=len(rows),
            regularisation=sum(item.is_regularisation for item in dataset.items), reused=self.reused,
            masks=sum(item.mask is not None for item in dataset.items), repeats_total=sum(item.repeats for item in dataset.items),
            rejected=tuple(self.rejected), buckets=dataset.buckets(),
            source_sizes=dict(Counter(f"{r.item.original_size[0]}x{r.item.original_size[1]}" for r in rows).most_common()),
            formats=dict(Counter(row.source_format for row in rows).most_common()),
            captions_from=dict(Counter(caption.origin for caption in captioned).most_common()),
            tags=tag_frequency(
                (item.caption for item in dataset.items if not item.is_regularisation), dataset.training.keep_tokens_separator
            ),
            warnings=tuple(warnings), seconds=seconds, doubtful=tuple(self.doubtful),
        )  # fmt: skip
        write_page(self.folder, dataset, report, [row.source for row in rows])
        return report


def _is_known(done: Processed | None) -> bool:
    """Whether a result of an earlier run can be used. What is cut off is tried again: it costs little, and an older version took broken
    EXIF for that; what was kept without being compared as it is now, too."""
    if done is None or done.reason == "truncated":
        return False
    return bool(done.reason) or read_signature(done.signature) is not None


def _nothing_left(rejected: Sequence[Rejection]) -> UserError:
    reasons = Counter(rejection.reason for rejection in rejected)
    listing = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    first = f" For example {rejected[0].source}: {rejected[0].message}." if rejected else ""
    hint = "Lower the smallest side in the cleaning settings." if reasons["too small"] else "Check that these are whole picture files."
    return UserError(f"None of the {plural(len(rejected), 'picture')} can be used: {listing}.{first}", hint, kind="dataset")


def _silent(done: int, total: int, text: str) -> None:
    return None
