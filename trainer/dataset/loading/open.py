"""The datasets that a configuration names, opened as one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from ...config.run_config import RunConfig
from ...config.sections.dataset import DatasetSection, MoreDataset
from ...config.sections.validation import ValidationSection
from ...core.errors import UserError
from ...core.messages import Message, Setting
from ..manifest.integrity import require_unchanged
from ..manifest.items import Dataset
from ..manifest.read import open_dataset
from .balance import balanced, count_regularisation, regularisation_shown
from .combine import WeightedDataset, combine_datasets, select_items


def open_datasets(section: DatasetSection) -> Dataset:
    """Everything that ``section`` names, as one dataset.

    Raises UserError as ``open_dataset`` does, and for a dataset with another hash or with images that changed since.
    """
    return combine_datasets([_share(section), *(_share(more) for more in section.more)])


def _share(section: MoreDataset) -> WeightedDataset:
    dataset = open_dataset(Path(section.path))
    if not dataset.hash.startswith(section.hash):
        raise UserError(
            f"The dataset in {section.path} is not the one that was chosen: its hash is {dataset.hash[:16]}, not {section.hash[:16]}.",
            Message(
                "Another preparation wrote to this folder, or its files were edited since. Queue Dataset Prep again; "
                "in a configuration file, correct ",
                Setting("dataset.hash"),
                " or leave it out.",
            ),
            kind="dataset",
        )
    require_unchanged(dataset)
    return WeightedDataset(dataset, section.repeats, section.loss_weight)


class RunDatasets(NamedTuple):
    """What a run trains on, what it holds out for validation, and a sentence about the regularisation images (empty without any)."""

    training: Dataset
    held_out: Dataset
    regularisation: str
    all_images: Dataset  # before any were held out or left out for balance


def open_training(config: RunConfig) -> RunDatasets:
    """The datasets of ``config`` as its run uses them: regularisation images are in balance with the others unless it says otherwise."""
    opened = open_datasets(config.dataset)
    present, held_out = hold_out(opened, config.validation)
    training = balanced(present) if config.dataset.balance_regularisation else present
    shown, of = regularisation_shown(training), sum(item.repeats for item in training.items)
    if not shown:
        return RunDatasets(training, held_out, "", opened)
    text = f"{shown} of the {of} images that an epoch shows are regularisation images ({shown / of:.0%})"
    if unused := count_regularisation(present) - count_regularisation(training):
        use_all = Setting("dataset.balance_regularisation", False)
        text = Message(text, f"; {unused} more are not needed for balance and not used (", use_all, " uses all)")
    return RunDatasets(training, held_out, text, opened)


def hold_out(dataset: Dataset, section: ValidationSection) -> tuple[Dataset, Dataset]:
    """What is trained on, and what is held out for validation (nothing while ``section.share`` is 0).

    Which pictures are held out depends on their content and ``section.seed``: not on names, order, captions or the training's seed.
    Copies of a picture are held out with it, regularisation pictures never. Raises UserError when there is no picture to spare.
    """
    if not section.share:
        return dataset, select_items(dataset, [])
    contents = {item.sha256 for item in dataset.items if not item.is_regularisation}
    if len(contents) < 2:
        raise UserError(
            f"The dataset {dataset.name} has {len(contents)} picture to train on, so none can be held out for validation.",
            Message("Set ", Setting("validation.share"), " to 0, or add images."),
            kind="dataset",
        )
    count = min(section.max_pictures, max(1, round(section.share * len(contents))))
    chosen = set(sorted(contents, key=lambda content: hashlib.sha256(f"{section.seed}|{content}".encode()).digest())[:count])
    out = {item.sha256: index for index, item in reversed(list(enumerate(dataset.items))) if item.sha256 in chosen}
    rest = [index for index, item in enumerate(dataset.items) if item.sha256 not in chosen]
    return select_items(dataset, rest), select_items(dataset, sorted(out.values()))
