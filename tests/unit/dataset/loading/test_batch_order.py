"""The order of images: everything is seen as often as it should be, in batches of one size, by the seed alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.core.seeding import derive_seed, generator
from trainer.dataset.loading.batch_order import Slot, epoch_batches, group, steps_per_epoch

SIZES = st.sampled_from([(512, 512), (448, 576), (576, 448), (64, 64)])


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int], int]:
    """Sizes, repeats and a batch size."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=25))
    repeats = draw(st.lists(st.integers(1, 4), min_size=len(sizes), max_size=len(sizes)))
    return sizes, repeats, draw(st.integers(1, 7))


@given(datasets(), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_each_image_is_seen_repeats_times_an_epoch(dataset: tuple[list[tuple[int, int]], list[int], int], seed: int, epoch: int) -> None:
    sizes, repeats, batch_size = dataset
    batches = epoch_batches(sizes, repeats, batch_size, seed=seed, epoch=epoch)
    seen = Counter(slot.item for batch in batches for slot in batch)
    assert seen == Counter(dict(enumerate(repeats)))


@given(datasets(), st.integers(0, 100))
def test_a_batch_holds_one_size_and_is_full_but_for_a_size_s_last(
    dataset: tuple[list[tuple[int, int]], list[int], int], epoch: int
) -> None:
    sizes, repeats, batch_size = dataset
    batches = epoch_batches(sizes, repeats, batch_size, seed=1, epoch=epoch)
    smaller: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        (size,) = {sizes[slot.item] for slot in batch}
        assert 1 <= len(batch) <= batch_size
        smaller[size] += len(batch) < batch_size
    assert all(count <= 1 for count in smaller.values())


@given(datasets(), st.integers(1, 6))
def test_the_promised_steps_are_those_that_grouping_makes(dataset: tuple[list[tuple[int, int]], list[int], int], accumulation: int) -> None:
    sizes, repeats, batch_size = dataset
    batches = epoch_batches(sizes, repeats, batch_size, seed=0, epoch=0)
    steps = group(batches, accumulation)
    assert steps_per_epoch(sizes, repeats, batch_size, accumulation) == len(steps)
    assert [batch for step in steps for batch in step] == batches
    assert all(len(step) == accumulation for step in steps[:-1])


@given(datasets(), st.integers(0, 50))
def test_positions_number_the_slots_in_training_order(dataset: tuple[list[tuple[int, int]], list[int], int], epoch: int) -> None:
    sizes, repeats, batch_size = dataset
    batches = epoch_batches(sizes, repeats, batch_size, seed=3, epoch=epoch)
    positions = [slot.position for batch in batches for slot in batch]
    assert positions == list(range(sum(repeats)))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    sizes, repeats = [(512, 512)] * 30, [1] * 30

    def order(seed: int, epoch: int) -> list[list[Slot]]:
        return epoch_batches(sizes, repeats, 1, seed=seed, epoch=epoch)

    alone = order(7, 3)
    for epoch in range(3):
        order(7, epoch)  # a generator with a memory would be elsewhere now
    assert order(7, 3) == alone
    assert len({tuple(slot.item for batch in order(seed, epoch) for slot in batch) for seed in range(4) for epoch in range(4)}) == 16


def test_every_image_comes_first_about_equally_often() -> None:
    firsts = Counter(epoch_batches([(8, 8)] * 4, [1] * 4, 1, seed=0, epoch=epoch)[0][0].item for epoch in range(4000))
    # binomial(4000, 1/4): mean 1000, standard deviation 27; five of them
    assert all(abs(firsts[item] - 1000) < 137 for item in range(4))


def test_one_slot_s_draws_do_not_depend_on_the_others() -> None:
    import torch

    twice = [torch.randn(8, generator=generator(1, "noise", 2, 3)) for _ in range(2)]
    assert torch.equal(*twice)
    draws = [derive_seed(seed, purpose, a, b) for seed in range(3) for purpose in ("noise", "flip") for a in range(12) for b in range(12)]
    assert len(set(draws)) == len(draws)  # (1, 11) is not (11, 1), and no two counters run together
    assert all(0 <= draw < 2**63 for draw in draws)


def test_neighbouring_counters_give_unrelated_noise() -> None:
    import torch

    noise = torch.stack([torch.randn(4096, generator=generator(0, "noise", 0, position)) for position in range(20)])
    correlation = torch.corrcoef(noise) - torch.eye(20)
    assert correlation.abs().max() < 5 / 4096**0.5
    assert abs(float(noise.mean())) < 5 / noise.numel() ** 0.5
