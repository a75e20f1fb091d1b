"""Datasets: ``prepare`` turns pictures as people have them into a folder that a trainer reads with ``open_dataset``."""

from __future__ import annotations

from .combine import Combined, Share, combine, select
from .contact_sheet import contact_sheet
from .dataset import Dataset, Item, open_dataset
from .export import export_dataset
from .preparation.prepare import PrepareResult, prepare
from .reading.sources import SourceImage
from .report import Rejection, Report
from .settings import (
    BucketSettings,
    CaptionSettings,
    CleanSettings,
    PrepareSettings,
    TaggerSettings,
    TrainingHints,
    dataset_folder,
    dataset_folder_name,
    parse_settings,
)

__all__ = [
    "BucketSettings",
    "CaptionSettings",
    "CleanSettings",
    "Combined",
    "Dataset",
    "Item",
    "PrepareResult",
    "PrepareSettings",
    "Rejection",
    "Report",
    "Share",
    "SourceImage",
    "TaggerSettings",
    "TrainingHints",
    "combine",
    "contact_sheet",
    "dataset_folder",
    "dataset_folder_name",
    "export_dataset",
    "open_dataset",
    "parse_settings",
    "prepare",
    "select",
]
