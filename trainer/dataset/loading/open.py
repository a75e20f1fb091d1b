"""Open the datasets that a run configuration names, as one dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from ...config.run_config import RunConfig
from ...config.sections.dataset import DatasetSection, MoreDataset
from ...config.sections.validation import ValidationSection
from ...core.counting import plural
from ...core.errors import UserError
from ...core.messages import File, Message, Setting
from ..manifest.integrity import require_unchanged
from ..manifest.items import Dataset
from ..manifest.open_dataset import open_dataset, read_manifest_header
from .balance import balanced, count_regularisation, regularisation_per_epoch
from .combine import WeightedDataset, combine_datasets, select_items


def open_datasets(section: DatasetSection) -> Dataset:
    """All datasets that ``section`` names, combined.

    Raises UserError as ``open_dataset`` does, and for a dataset with another hash or with images that changed after it was prepared.
    """
    return combine_datasets([_open(section), *(_open(more) for more in section.more)])


def _open(section: MoreDataset) -> WeightedDataset:
    dataset = open_dataset(Path(section.path))
    if not dataset.hash.startswith(section.hash):
        raise UserError(
            Message(
                "The dataset in ",
                File(str(section.path)),
                f" is not the one that was chosen: its hash is {dataset.hash[:16]}, not {section.hash[:16]}.",
            ),
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


def trigger_words(section: DatasetSection) -> list[str]:
    """The trigger words of the datasets that ``section`` names, each once. Raises UserError as ``open_dataset`` does."""
    headers = [read_manifest_header(Path(part.path)) for part in (section, *section.more)]
    return list(dict.fromkeys(word for header in headers if isinstance(word := header.get("trigger"), str) and word))


class RunDatasets(NamedTuple):
    """The images of a run."""

    training: Dataset
    held_out: Dataset  # for validation
    regularisation: str  # a statement about the regularisation images of an epoch; empty without any
    all_images: Dataset  # before any were held out or left out for balance


def open_training(config: RunConfig) -> RunDatasets:
    """The datasets of ``config``, split into training and validation images, with regularisation images balanced unless it is off."""
    opened = open_datasets(config.dataset)
    present, held_out = hold_out(opened, config.validation)
    training = balanced(present) if config.dataset.balance_regularisation else present
    count, total = regularisation_per_epoch(training), sum(item.repeats for item in training.items)
    if not count:
        return RunDatasets(training, held_out, "", opened)
    text = f"{count} of the {total} images in an epoch are regularisation images ({count / total:.0%})"
    if unused := count_regularisation(present) - count_regularisation(training):
        use_all = Setting("dataset.balance_regularisation", False)
        text = Message(text, f"; {unused} more are not needed for balance and not used (", use_all, " uses all)")
    return RunDatasets(training, held_out, text, opened)


def hold_out(dataset: Dataset, section: ValidationSection) -> tuple[Dataset, Dataset]:
    """(images for training, images for validation); none are held out while ``section.share`` is 0.

    The selection depends on the images' content and on ``section.seed``, not on names, order, captions or the seed of the training.
    Copies of an image are held out with it, regularisation images never. Raises UserError when there are fewer than two images.
    """
    if not section.share:
        return dataset, select_items(dataset, [])
    contents = {item.sha256 for item in dataset.items if not item.is_regularisation}
    if len(contents) < 2:
        raise UserError(
            f"The dataset {dataset.name} has only {plural(len(contents), 'image')} to train on, so none can be held out for validation.",
            Message("Set ", Setting("validation.share"), " to 0, or add images."),
            kind="dataset",
        )
    count = min(section.max_pictures, max(1, round(section.share * len(contents))))
    chosen = set(sorted(contents, key=lambda content: hashlib.sha256(f"{section.seed}|{content}".encode()).digest())[:count])
    held_out = {item.sha256: index for index, item in reversed(list(enumerate(dataset.items))) if item.sha256 in chosen}
    rest = [index for index, item in enumerate(dataset.items) if item.sha256 not in chosen]
    return select_items(dataset, rest), select_items(dataset, sorted(held_out.values()))
