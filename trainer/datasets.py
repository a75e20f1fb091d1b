"""The datasets that a configuration names, opened as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .config import DatasetSection, MoreDataset
from .dataset import Dataset, open_dataset
from .dataset.combine import Share, combine


def open_datasets(section: DatasetSection) -> Dataset:
    """Everything that ``section`` names, as one dataset. Raises UserError as ``open_dataset`` does."""
    first = Share(open_dataset(Path(section.path)), section.repeats, section.loss_weight)
    return combine([first, *(Share(open_dataset(Path(more.path)), more.repeats, more.loss_weight) for more in section.more)])


def dataset_section(datasets: Sequence[MoreDataset]) -> DatasetSection:
    """The section that trains ``datasets`` together, in their order; the first one's hints speak for the run where one must."""
    first, *others = datasets
    return DatasetSection(path=first.path, repeats=first.repeats, loss_weight=first.loss_weight, more=tuple(others))
