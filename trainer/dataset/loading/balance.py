"""Regularisation images in balance with the others: as many of both in an epoch, by kohya's rule."""

from __future__ import annotations

from dataclasses import replace

from ..manifest.items import Dataset
from .combine import select_items


def balanced(dataset: Dataset) -> Dataset:
    """``dataset`` with regularisation images shown as often in an epoch as the others; itself without any.

    This is kohya's rule, so that a dataset means the same in both trainers. In their order they are shown with their own repeats until
    there are as many; those beyond are left out. When all are too few, one after the other is shown once more until there are enough.
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
    shown = 0
    for index in regular:
        if shown >= wanted:
            break
        repeats[index] = dataset.items[index].repeats
        shown += repeats[index]
    missing = max(0, wanted - shown)
    for position, index in enumerate(repeats):
        repeats[index] += missing // len(repeats) + (position < missing % len(repeats))
    kept = [index for index, item in enumerate(dataset.items) if not item.is_regularisation or index in repeats]
    items = [replace(dataset.items[index], repeats=repeats.get(index, dataset.items[index].repeats)) for index in kept]
    return replace(select_items(dataset, kept), items=items)


def regularisation_shown(dataset: Dataset) -> int:
    """How many of the images that an epoch shows are for regularisation."""
    return sum(item.repeats for item in dataset.items if item.is_regularisation)


def count_regularisation(dataset: Dataset) -> int:
    """How many images for regularisation there are."""
    return sum(item.is_regularisation for item in dataset.items)
