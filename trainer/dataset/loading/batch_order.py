"""The order of training images: batches of one image size, shuffled for each epoch, determined by the seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.seeding import derive_seed


@dataclass(frozen=True)
class Slot:
    """One image in one epoch. ``position`` numbers the slots of the epoch in training order."""

    item: int
    position: int


def epoch_batches(sizes: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[Slot]]:
    """The batches of one epoch. Each batch holds images of one size, and each image appears ``repeats`` times.

    ``sizes`` (width, height) and ``repeats`` have one entry per image, in manifest order. The last batch of a bucket may be smaller.
    """
    rng = random.Random(derive_seed(seed, "order", epoch))
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        buckets[size].extend([index] * repeats[index])
    batches: list[list[int]] = []
    for size in sorted(buckets):
        members = buckets[size]
        rng.shuffle(members)
        batches.extend(members[start : start + batch_size] for start in range(0, len(members), batch_size))
    rng.shuffle(batches)
    numbered: list[list[Slot]] = []
    position = 0
    for batch in batches:
        numbered.append([Slot(item, position + offset) for offset, item in enumerate(batch)])
        position += len(batch)
    return numbered


def group(batches: Sequence[list[Slot]], accumulation: int) -> list[list[list[Slot]]]:
    """Batches grouped into optimiser steps of ``accumulation`` batches; the last step of the epoch may have fewer."""
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]


def steps_per_epoch(sizes: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int, accumulation: int) -> int:
    """The number of optimiser steps in an epoch."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for size, times in zip(sizes, repeats, strict=True):
        counts[size] += times
    batches = sum(-(-count // batch_size) for count in counts.values())
    return -(-batches // accumulation)
