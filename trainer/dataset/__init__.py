"""Datasets: ``prepare_dataset`` turns images as people have them into a folder that ``open_dataset`` reads for training."""

from __future__ import annotations

from ..config.prepare_sections import BucketSettings, CaptionSettings, CleanSettings, TaggerSettings, TrainingHints
from ..config.prepare_settings import PrepareSettings, dataset_folder, dataset_folder_name, parse_settings
from .export.export_dataset import export_dataset
from .loading.combine import CombinedDataset, WeightedDataset, combine_datasets, select_items
from .manifest.items import Dataset, Item
from .manifest.open_dataset import open_dataset
from .preparation.prepare_dataset import PrepareResult, prepare_dataset
from .reading.sources import SourceImage
from .report.contact_sheet import contact_sheet
from .report.summary import Rejection, Report

__all__ = [
    "BucketSettings",
    "CaptionSettings",
    "CleanSettings",
    "CombinedDataset",
    "Dataset",
    "Item",
    "PrepareResult",
    "PrepareSettings",
    "Rejection",
    "Report",
    "SourceImage",
    "TaggerSettings",
    "TrainingHints",
    "WeightedDataset",
    "combine_datasets",
    "contact_sheet",
    "dataset_folder",
    "dataset_folder_name",
    "export_dataset",
    "open_dataset",
    "parse_settings",
    "prepare_dataset",
    "select_items",
]
