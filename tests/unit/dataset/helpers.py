"""Settings and shortcuts that tests of datasets share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.dataset import CaptionSettings, Dataset, PrepareResult, PrepareSettings, prepare_dataset
from trainer.dataset.reading.sources import Entry, SourceListing, from_folder

SETTINGS = PrepareSettings(trigger="mk01", class_description="girl", resolution=64)
WITHOUT_CLASS = PrepareSettings(trigger="mk01", resolution=64)


def changed(**changes: object) -> PrepareSettings:
    """SETTINGS with other values."""
    return PrepareSettings.model_validate({**SETTINGS.model_dump(), **changes})


def prepare_beside(source: Path, **changes: object) -> PrepareResult:
    """Prepare ``source`` with WITHOUT_CLASS and ``changes`` into the folder ``out`` beside it."""
    settings = PrepareSettings.model_validate({"trigger": "mk01", "resolution": 64, **changes})
    return prepare_dataset(source, source.parent / "out", settings)


def captions_by_source(dataset: Dataset) -> dict[str, str]:
    """Caption by the name of the source."""
    return {row["source"]: item.caption for row, item in zip(dataset.rows(), dataset.items, strict=True)}


def listing(root: Path, *, inside: Sequence[Path] = (), **captions: Any) -> SourceListing:
    """What is found in a source folder. ``captions``: settings of captions."""
    return from_folder(root, CaptionSettings(**captions), inside=inside)


def listed_captions(root: Path, **captions: Any) -> dict[str, str | None]:
    """Caption by the name of the image in a source folder."""
    return {entry.name: entry.caption for entry in listing(root, **captions).entries}


def listed_entry(root: Path, name: str) -> Entry:
    """The entry of one image in a source folder."""
    return next(entry for entry in listing(root).entries if entry.name == name)
