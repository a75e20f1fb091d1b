"""The end of a preparation: manifest and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...config.prepare_settings import PrepareSettings, dataset_folder_name
from ..captions.tags import tag_frequency
from ..images.process import ProcessedImage
from ..loading.balance import balanced
from ..manifest.hashing import dataset_hash, hashed_header
from ..manifest.items import Dataset, Item, Row
from ..manifest.open_dataset import open_dataset
from ..manifest.write import write_manifest
from ..report.html_page import write_page
from ..report.summary import Rejection, Report, SimilarPair
from .candidates import Candidate
from .captioning import CaptionResult


def manifest_row(candidate: Candidate, result: ProcessedImage, caption: CaptionResult, settings: PrepareSettings) -> Row:
    """The manifest's row for an image of the dataset."""
    entry = candidate.entry
    item = Item(
        file=candidate.relative_target,
        sha256=result.sha256,
        caption=caption.prepared,
        width=result.size[0],
        height=result.size[1],
        original_size=result.original,
        crop_top_left=result.crop_top_left,
        crop_right=result.crop_right,
        repeats=entry.repeats * (1 if entry.is_regularisation else settings.repeats),
        mask=candidate.mask.relative_to(candidate.folder).as_posix() if result.mask else None,
        is_regularisation=entry.is_regularisation,
        weight=settings.regularisation_weight if entry.is_regularisation else 1.0,
    )
    return Row(item, result.mask_sha256, result.bytes, entry.name, candidate.sha256, result.format, caption.origin, result.steps)


def write_dataset(
    folder: Path, settings: PrepareSettings, rows: Sequence[Row], captions: Sequence[CaptionResult], rejected: Sequence[Rejection]
) -> Dataset:
    """Write the manifest of ``folder`` and open the dataset. ``captions``: one for each row."""
    final = [replace(row.item, caption=caption.final) for row, caption in zip(rows, captions, strict=True)]
    hashed = hashed_header(settings.trigger, settings.class_description, settings.resolution, settings.training)
    digest = dataset_hash(zip(final, [row.mask_sha256 for row in rows], strict=True), hashed)
    header = {
        "name": dataset_folder_name(settings),
        "hash": digest,
        **hashed,
        "settings": settings.model_dump(mode="json"),
        "rejected": [rejection.to_json() for rejection in rejected],
    }
    write_manifest(folder, header, rows)
    return open_dataset(folder)


def write_report(
    dataset: Dataset,
    rows: Sequence[Row],
    *,
    reused: int,
    rejected: Sequence[Rejection],
    similar: Sequence[SimilarPair],
    warnings: Sequence[str],
    seconds: float,
) -> Report:
    """The report on a prepared dataset, written beside it as a page. ``rows``: those of ``dataset``, with sources."""
    trained = [item.caption for item in dataset.items if not item.is_regularisation]
    report = Report(
        name=dataset.name,
        path=str(dataset.path),
        hash=dataset.hash,
        trigger=dataset.trigger,
        class_description=dataset.class_description,
        resolution=dataset.resolution,
        kept=len(rows),
        regularisation=sum(item.is_regularisation for item in dataset.items),
        reused=reused,
        masks=sum(item.mask is not None for item in dataset.items),
        repeats_total=sum(item.repeats for item in dataset.items),
        balanced_total=sum(item.repeats for item in balanced(dataset).items),
        rejected=tuple(rejected),
        buckets=dataset.buckets(),
        source_sizes=dict(Counter(f"{row.item.original_size[0]}x{row.item.original_size[1]}" for row in rows).most_common()),
        formats=dict(Counter(row.source_format for row in rows).most_common()),
        captions_from=dict(Counter(row.caption_from for row in rows).most_common()),
        tags=tag_frequency(trained, dataset.training.keep_tokens_separator),
        warnings=tuple(warnings),
        seconds=seconds,
        doubtful=tuple(similar),
    )
    write_page(dataset.path, dataset, report, [row.source for row in rows])
    return report
