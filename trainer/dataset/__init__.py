"""Datasets: ``prepare`` turns pictures as people have them into a folder that a trainer reads with ``open_dataset``."""

from __future__ import annotations

from .export.export_dataset import export_dataset
from .loading.combine import Combined, Share, combine, select
from .manifest.items import Dataset, Item
from .manifest.read import open_dataset
from .preparation.prepare import PrepareResult, prepare
from .reading.sources import SourceImage
from .report.contact_sheet import contact_sheet
from .report.summary import Rejection, Report
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
