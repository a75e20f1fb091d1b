"""Which images of a step each process computes."""

from __future__ import annotations

import pytest

from trainer.core.work.processes import ProcessGroup
from trainer.dataset.loading.batch_order import Slot, epoch_batches, group
from trainer.training.distributed import divide


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (1, 2), (2, 3), (4, 1), (5, 4)])
def test_every_image_is_computed_once_with_the_weight_of_a_single_process(world: int, batch_size: int, accumulation: int) -> None:
    sizes = [(64, 64)] * 7 + [(96, 64)] * 6
    for step in group(epoch_batches(sizes, [1, 2] * 6 + [1], batch_size, seed=3, epoch=0), accumulation):
        weight: dict[Slot, float] = {}
        for rank in range(world):
            for share in divide(step, ProcessGroup(rank, world)):
                for slot in share.slots if share.scale else ():
                    assert slot not in weight, "two processes compute the same image"
                    weight[slot] = share.scale / share.accumulated / world / len(share.slots)  # gradients are averaged over the processes
        # in one process: the mean over the micro-batches of each one's mean
        expected = {slot: 1 / len(step) / len(batch) for batch in step for slot in batch}
        assert weight == pytest.approx(expected)


def test_a_share_never_mixes_buckets() -> None:
    sizes = [(64, 64)] * 5 + [(96, 64)] * 5
    for step in group(epoch_batches(sizes, [1] * 10, 4, seed=0, epoch=1), 2):
        for rank in range(2):
            for share in divide(step, ProcessGroup(rank, 2)):
                assert len({sizes[slot.item] for slot in share.slots}) == 1


def test_micro_batches_of_one_image_are_divided_evenly() -> None:
    step = [[Slot(0, 0)], [Slot(1, 1)], [Slot(2, 2)], [Slot(3, 3)]]
    assert [[s.slots[0].item for s in divide(step, ProcessGroup(rank, 2))] for rank in range(2)] == [[0, 2], [1, 3]]


def test_a_process_without_an_image_still_joins() -> None:
    (share,) = divide([[Slot(4, 0)]], ProcessGroup(1, 2))
    assert share.scale == 0.0
    assert share.slots == (Slot(4, 0),)
