"""Several prepared datasets trained together as one; each keeps its trigger word and its settings for captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..manifest.items import Dataset, Item


@dataclass(frozen=True)
class WeightedDataset:
    """A dataset with factors for the repeats and the loss weights of its images."""

    dataset: Dataset
    repeats: int = 1
    loss_weight: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        """Whether both factors are 1."""
        return self.repeats == 1 and self.loss_weight == 1


@dataclass(frozen=True, kw_only=True)
class CombinedDataset(Dataset):
    """Images of several datasets. ``owners``: for each image the index of its dataset in ``parts``."""

    parts: tuple[Dataset, ...]
    owners: tuple[int, ...]

    @property
    def members(self) -> tuple[Dataset, ...]:
        """The combined datasets; no two have the same name."""
        return self.parts

    def member(self, index: int) -> Dataset:
        """The dataset that image ``index`` belongs to."""
        return self.parts[self.owners[index]]

    def image_path(self, item: Item) -> Path:
        """The path of the image."""
        return self.member(self.items.index(item)).image_path(item)

    def mask_path(self, item: Item) -> Path | None:
        """The path of the loss mask; None without one."""
        return self.member(self.items.index(item)).mask_path(item)


def combine_datasets(datasets: Sequence[WeightedDataset]) -> Dataset:
    """``datasets`` as one, whose hash covers their hashes and factors. A single dataset with factors of 1 is returned as it is."""
    if len(datasets) == 1 and datasets[0].changes_nothing:
        return datasets[0].dataset
    parts = _with_unique_names([each.dataset for each in datasets])
    items, owners = [], []
    for number, each in enumerate(datasets):
        for item in each.dataset.items:
            items.append(replace(item, repeats=item.repeats * each.repeats, weight=item.weight * each.loss_weight))
            owners.append(number)
    first = parts[0]
    one = len(parts) == 1
    hashed = [[each.dataset.hash, each.repeats, each.loss_weight] for each in datasets]
    return CombinedDataset(
        path=first.path,
        name=" + ".join(part.name for part in parts),
        hash=hashlib.sha256(json.dumps(hashed).encode()).hexdigest(),
        trigger=first.trigger if one else ", ".join(dict.fromkeys(phrase for part in parts if (phrase := dataset_trigger_phrase(part)))),
        class_description=first.class_description if one else "",
        resolution=max(part.resolution for part in parts),
        items=items,
        training=first.training,
        notes=tuple(note for part in parts for note in part.notes),
        parts=parts,
        owners=tuple(owners),
    )


def select_items(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """The images of ``dataset`` at ``indices``. Each keeps the dataset that it belongs to; name and hash stay those of the whole."""
    owners = dataset.owners if isinstance(dataset, CombinedDataset) else (0,) * len(dataset.items)
    known = {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__}
    known["items"] = [dataset.items[index] for index in indices]
    return CombinedDataset(**known, parts=dataset.members, owners=tuple(owners[index] for index in indices))


def dataset_trigger_phrase(dataset: Dataset) -> str:
    """The trigger word and the class description, as far as there are any."""
    return " ".join(part for part in (dataset.trigger, dataset.class_description) if part)


def _with_unique_names(datasets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """A number is added to the second dataset of a name, because LoRA metadata lists datasets by name."""
    seen: dict[str, int] = {}
    named = []
    for dataset in datasets:
        seen[dataset.name] = count = seen.get(dataset.name, 0) + 1
        named.append(dataset if count == 1 else replace(dataset, name=f"{dataset.name} ({count})"))
    return tuple(named)
