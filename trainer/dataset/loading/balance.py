"""Balance regularisation images with the others: an epoch has the same number of both, by the rule of kohya's sd-scripts."""

from __future__ import annotations

from dataclasses import replace

from ..manifest.items import Dataset
from .combine import select_items


def balanced(dataset: Dataset) -> Dataset:
    """``dataset`` with as many regularisation images in an epoch as other images, counting repeats; unchanged without any.

    Regularisation images are taken in order, with their own repeats, until there are enough; the rest are left out. When all of them are
    too few, their repeats are raised by one in turn until there are enough. sd-scripts does the same.
    """
    wanted, regular = 0, []
    for index, item in enumerate(dataset.items):
        if item.is_regularisation:
            regular.append(index)
        else:
            wanted += item.repeats
    if not regular or not wanted:
        return dataset
    repeats: dict[int, int] = {}
    count = 0
    for index in regular:
        if count >= wanted:
            break
        repeats[index] = dataset.items[index].repeats
        count += repeats[index]
    missing = max(0, wanted - count)
    for position, index in enumerate(repeats):
        repeats[index] += missing // len(repeats) + (position < missing % len(repeats))
    kept = [index for index, item in enumerate(dataset.items) if not item.is_regularisation or index in repeats]
    items = [replace(dataset.items[index], repeats=repeats.get(index, dataset.items[index].repeats)) for index in kept]
    return replace(select_items(dataset, kept), items=items)


def regularisation_per_epoch(dataset: Dataset) -> int:
    """The number of regularisation images in an epoch, counting repeats."""
    return sum(item.repeats for item in dataset.items if item.is_regularisation)


def count_regularisation(dataset: Dataset) -> int:
    """The number of regularisation images, without repeats."""
    return sum(item.is_regularisation for item in dataset.items)
