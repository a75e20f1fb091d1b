"""Captions at a moment of training: what stays, what moves, what is dropped and how often."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import Item, TrainingHints
from trainer.dataset.loading.caption_variation import caption_at, distinct_prompts
from trainer.dataset.loading.kohya_captions import fixed_caption

TAGS = ["trigger", "1girl", "solo", "long hair", "smile", "sky", "hat", "tree", "cat", "night"]


def item(caption: str) -> Item:
    """An item of which only the caption matters."""
    return Item("a.png", "0" * 64, caption, 512, 512, (512, 512), (0, 0))


def captions(hints: TrainingHints, count: int, seed: int = 0) -> list[str]:
    """The captions of ``count`` slots."""
    return [caption_at(item(", ".join(TAGS)), hints, seed=seed, epoch=0, position=position) for position in range(count)]


def test_without_hints_a_caption_stays_as_it_was_written() -> None:
    text = "trigger,  odd spacing ,,end"
    assert caption_at(item(text), TrainingHints(), seed=0, epoch=0, position=0) == text


@given(st.integers(0, 12), st.integers(0, 1000), st.integers(0, 50))
def test_the_kept_tags_stay_in_front_in_order_and_the_rest_is_all_there(keep: int, position: int, epoch: int) -> None:
    hints = TrainingHints(shuffle_caption=True, keep_tokens=keep)
    tags = caption_at(item(", ".join(TAGS)), hints, seed=5, epoch=epoch, position=position).split(", ")
    assert tags[:keep] == TAGS[:keep]
    assert sorted(tags) == sorted(TAGS)


def test_shuffling_puts_every_tag_everywhere() -> None:
    places = {tag: Counter[int]() for tag in TAGS[1:]}
    for caption in captions(TrainingHints(shuffle_caption=True, keep_tokens=1), 3000):
        for place, tag in enumerate(caption.split(", ")[1:]):
            places[tag][place] += 1
    # binomial(3000, 1/9): mean 333, standard deviation 17; five of them
    assert all(abs(counts[place] - 333) < 86 for counts in places.values() for place in range(9))


def test_captions_are_dropped_at_the_set_rate() -> None:
    seen = captions(TrainingHints(caption_dropout=0.1), 5000)
    dropped = sum(caption == "" for caption in seen)
    assert abs(dropped - 500) < 5 * (5000 * 0.1 * 0.9) ** 0.5
    assert {caption for caption in seen if caption} == {", ".join(TAGS)}


def test_tags_are_dropped_at_the_set_rate_except_kept_ones() -> None:
    seen = [caption.split(", ") for caption in captions(TrainingHints(tag_dropout=0.3, keep_tokens=2), 4000)]
    for tag in TAGS[2:]:
        missing = sum(tag not in tags for tags in seen)
        assert abs(missing - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5
    assert all(tags[:2] == TAGS[:2] for tags in seen)


def test_rates_of_nothing_and_of_everything_are_exact() -> None:
    assert set(captions(TrainingHints(caption_dropout=1.0), 200)) == {""}
    assert set(captions(TrainingHints(tag_dropout=1.0, keep_tokens=1), 200)) == {"trigger"}
    assert "" not in captions(TrainingHints(caption_dropout=0.0, tag_dropout=0.5), 200)


def test_a_caption_is_a_function_of_seed_epoch_and_position() -> None:
    hints = TrainingHints(shuffle_caption=True, caption_dropout=0.2, tag_dropout=0.2)

    def at(seed: int, epoch: int, position: int) -> str:
        return caption_at(item(", ".join(TAGS)), hints, seed=seed, epoch=epoch, position=position)

    assert at(1, 2, 3) == at(1, 2, 3)
    assert len({at(1, epoch, 3) for epoch in range(30)}) > 15
    assert [at(1, 0, position) for position in range(30)] != [at(2, 0, position) for position in range(30)]


def test_the_prompts_to_encode_are_distinct_and_hold_the_empty_one() -> None:
    assert distinct_prompts(["b", "a", "b", ""]) == ["", "b", "a"]


def chosen(caption: str, hints: TrainingHints, count: int = 400) -> Counter[str]:
    """How often each prompt comes from ``caption``."""
    return Counter(caption_at(item(caption), hints, seed=3, epoch=0, position=position) for position in range(count))


def test_a_line_and_a_part_of_each_choice_are_drawn_evenly() -> None:
    seen = chosen("{a|b} x, {c|d|e}\nsecond {{line}}", TrainingHints(wildcards=True), 6000)
    first = {f"{head} x, {tail}" for head in "ab" for tail in "cde"}
    assert set(seen) == {*first, "second {line}"}
    # binomial(6000, 1/12) and (6000, 1/2), five standard deviations
    assert all(abs(seen[text] - 500) < 5 * 21.5 for text in first)
    assert abs(seen["second {line}"] - 3000) < 5 * 38.8


def test_without_wildcards_braces_are_text() -> None:
    assert chosen("{a|b} x", TrainingHints()) == {"{a|b} x": 400}
    assert chosen("{a|b} x", TrainingHints(shuffle_caption=True)) == {"{a|b} x": 400}


def test_tags_around_the_separators_stay_in_place_and_the_separators_go() -> None:
    caption = "trigger, 1girl ||| a, b, c ||| sketch"
    assert chosen(caption, TrainingHints()) == {"trigger, 1girl, a, b, c, sketch": 400}
    seen = chosen(caption, TrainingHints(shuffle_caption=True, keep_tokens=0))
    assert {text.split(", ")[0:2] == ["trigger", "1girl"] and text.endswith(", sketch") for text in seen} == {True}
    assert {tuple(sorted(text.split(", ")[2:-1])) for text in seen} == {("a", "b", "c")} and len(seen) == 6
    dropped = chosen("trigger ||| a", TrainingHints(tag_dropout=0.5))
    assert set(dropped) == {"trigger", "trigger, a"}
    assert chosen("a || b", TrainingHints(keep_tokens_separator="||")) == {"a, b": 400}
    assert chosen("a ||| b", TrainingHints(keep_tokens_separator="")) == {"a ||| b": 400}


def test_backslashes_before_brackets_are_not_trained() -> None:
    for hints in (TrainingHints(), TrainingHints(shuffle_caption=True)):
        assert chosen(r"saber \(fate\)", hints) == {"saber (fate)": 400}


def test_where_nothing_is_drawn_the_first_of_each_choice_stands() -> None:
    hints = TrainingHints(wildcards=True, shuffle_caption=True, caption_dropout=0.9)
    assert fixed_caption(item("{a|b}, c ||| d\ne"), hints) == "a, c, d"
