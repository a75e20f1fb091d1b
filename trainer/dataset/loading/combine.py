"""Several prepared datasets as one: trained together, each with its own captions' hints and trigger word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..manifest.items import Dataset, Item


@dataclass(frozen=True)
class WeightedDataset:
    """A dataset and its part of an epoch: ``repeats`` multiplies how often each picture comes, ``loss_weight`` how much it counts."""

    dataset: Dataset
    repeats: int = 1
    loss_weight: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        """Whether the dataset is trained as it was prepared."""
        return self.repeats == 1 and self.loss_weight == 1


@dataclass(frozen=True, kw_only=True)
class CombinedDataset(Dataset):
    """Pictures of several datasets; ``owners`` says for each picture which of ``parts`` it belongs to."""

    parts: tuple[Dataset, ...]
    owners: tuple[int, ...]

    @property
    def members(self) -> tuple[Dataset, ...]:
        """The datasets that are trained together, each under a name of its own."""
        return self.parts

    def member(self, index: int) -> Dataset:
        """The dataset that picture ``index`` belongs to."""
        return self.parts[self.owners[index]]

    def image_path(self, item: Item) -> Path:
        """The picture's file."""
        return self.member(self.items.index(item)).image_path(item)

    def mask_path(self, item: Item) -> Path | None:
        """The loss mask's file."""
        return self.member(self.items.index(item)).mask_path(item)


def combine_datasets(shares: Sequence[WeightedDataset]) -> Dataset:
    """The datasets of ``shares`` as one. One dataset alone that nothing changes is itself; ``hash`` covers all and their shares."""
    if len(shares) == 1 and shares[0].changes_nothing:
        return shares[0].dataset
    parts = _with_names_of_their_own([share.dataset for share in shares])
    items, owners = [], []
    for number, share in enumerate(shares):
        for item in share.dataset.items:
            items.append(replace(item, repeats=item.repeats * share.repeats, weight=item.weight * share.loss_weight))
            owners.append(number)
    first = parts[0]
    one = len(parts) == 1
    hashed = [[share.dataset.hash, share.repeats, share.loss_weight] for share in shares]
    return CombinedDataset(
        path=first.path,
        name=" + ".join(part.name for part in parts),
        hash=hashlib.sha256(json.dumps(hashed).encode()).hexdigest(),
        trigger=first.trigger if one else ", ".join(dict.fromkeys(phrase for part in parts if (phrase := trigger_phrase(part)))),
        class_description=first.class_description if one else "",
        resolution=max(part.resolution for part in parts),
        items=items,
        training=first.training,
        notes=tuple(note for part in parts for note in part.notes),
        parts=parts,
        owners=tuple(owners),
    )


def select_items(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Some pictures of ``dataset``, each still with the dataset that it belongs to; name, hash and hints stay those of the whole."""
    owners = dataset.owners if isinstance(dataset, CombinedDataset) else (0,) * len(dataset.items)
    known = {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__}
    known["items"] = [dataset.items[index] for index in indices]
    return CombinedDataset(**known, parts=dataset.members, owners=tuple(owners[index] for index in indices))


def trigger_phrase(dataset: Dataset) -> str:
    """The trigger word, followed by the class description when there is one."""
    return " ".join(part for part in (dataset.trigger, dataset.class_description) if part)


def _with_names_of_their_own(datasets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """Metadata lists datasets by name: the second of a name gets a number."""
    seen: dict[str, int] = {}
    named = []
    for dataset in datasets:
        seen[dataset.name] = count = seen.get(dataset.name, 0) + 1
        named.append(dataset if count == 1 else replace(dataset, name=f"{dataset.name} ({count})"))
    return tuple(named)
