"""Caption rules, and that nothing a person could write breaks them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions import edit_tags, plain_frequency, tag_frequency, with_trigger
from trainer.dataset.settings import CaptionSettings


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("1girl, blue hair", "mk01, 1girl, blue hair"),
        ("mk01, 1girl", "mk01, 1girl"),
        ("1girl, mk01, solo", "mk01, 1girl, solo"),
        ("1girl, MK01", "mk01, 1girl"),
        ("mk01 girl", "mk01 girl"),
        ("mk01 girl, mk01, smile", "mk01 girl, smile"),
        ("a photo of mk01", "mk01, a photo of"),
        ("mk012, mk01x", "mk01, mk012, mk01x"),
        ("", "mk01"),
        (" , ,", "mk01"),
        ("mk01", "mk01"),
        ("mk01,1girl", "mk01, 1girl"),
    ],
)
def test_trigger_is_in_front_exactly_once(caption: str, expected: str) -> None:
    assert with_trigger(caption, "mk01") == expected


def test_without_a_trigger_the_caption_stays() -> None:
    assert with_trigger("a girl,  smiling", "") == "a girl, smiling"


@given(st.text(max_size=80), st.text(alphabet="abcXYZ019_", min_size=1, max_size=8))
def test_trigger_property(caption: str, trigger: str) -> None:
    result = with_trigger(caption, trigger)
    assert result.startswith(trigger)
    assert len(re.findall(rf"(?<!\w){re.escape(trigger)}(?!\w)", result, re.IGNORECASE)) == 1
    assert with_trigger(result, trigger) == result
    assert "\n" not in result


def test_tags_are_replaced_removed_and_deduplicated() -> None:
    rules = CaptionSettings(replace={"grey hair": "gray hair, long hair"}, remove=("watermark", "Signed_By"))
    assert edit_tags("1girl, Grey_Hair, watermark, signed by, long hair", rules) == "1girl, gray hair, long hair"


def test_tag_orders() -> None:
    caption = "solo, blue hair, 1girl, smile"
    assert edit_tags(caption, CaptionSettings(order="alphabetical")) == "1girl, blue hair, smile, solo"
    assert edit_tags(caption, CaptionSettings(first=("1girl", "smile"))) == "1girl, smile, solo, blue hair"
    table = plain_frequency(["smile", "smile, 1girl", "blue hair, smile", "1girl"])
    assert edit_tags(caption, CaptionSettings(order="frequency"), table) == "smile, 1girl, blue hair, solo"


@given(st.lists(st.text(alphabet="abc ", max_size=5), max_size=8))
def test_editing_without_rules_only_tidies(tags: list[str]) -> None:
    expected = list(dict.fromkeys(" ".join(tag.split()) for tag in tags if tag.strip()))
    assert edit_tags(",".join(tags), CaptionSettings()) == ", ".join(expected)


def test_frequency_table_counts_captions_not_occurrences() -> None:
    captions = ["a, b, a", "b", "c, b"]
    assert tag_frequency(captions) == {"b": 3, "a": 1, "c": 1}
    assert list(tag_frequency(captions)) == ["b", "a", "c"]
    assert Counter(tag_frequency(captions)) == Counter(tag for c in captions for tag in set(c.split(", ")))
