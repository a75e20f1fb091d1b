"""Tags, their rules, and the trigger word."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.prepare_sections import CaptionSettings
from trainer.dataset.captions.tag_rules import TagRules
from trainer.dataset.captions.tags import plain_frequency, tag_frequency, with_trigger


def edit_tags(caption: str, settings: CaptionSettings, frequency: Counter[str] | None = None) -> str:
    return TagRules(settings).edit(caption, frequency)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("1girl, blue hair", "mk01, 1girl, blue hair"),
        ("mk01, 1girl", "mk01, 1girl"),
        ("1girl, mk01, solo", "mk01, 1girl, solo"),
        ("1girl, MK01", "mk01, 1girl"),
        ("mk01 girl", "mk01 girl"),
        ("mk01 girl, mk01, smile", "mk01 girl, smile"),
        ("a photo of mk01", "mk01, a photo of mk01"),
        ("1girl, mk01 (cosplay)", "mk01, 1girl, mk01 (cosplay)"),
        ("mk01 (cosplay), solo", "mk01, mk01 (cosplay), solo"),
        (r"mk01_\(cosplay\)", r"mk01, mk01_\(cosplay\)"),
        ("hatsune mk01, mk01-like, mk01's hat", "mk01, hatsune mk01, mk01-like, mk01's hat"),
        ("mk01 girl, smile ||| mk01, solo", "mk01 girl, smile ||| solo"),
        ("||| solo", "mk01 ||| solo"),
        ("a cat\na dog", "mk01, a cat\nmk01, a dog"),
        ("mk012, mk01x", "mk01, mk012, mk01x"),
        ("", "mk01"),
        (" , ,", "mk01"),
        ("mk01", "mk01"),
        ("mk01,1girl", "mk01, 1girl"),
    ],
)
def test_trigger_is_in_front_exactly_once(caption: str, expected: str) -> None:
    assert with_trigger(caption, "mk01") == expected


def test_caption_is_unchanged_without_a_trigger() -> None:
    assert with_trigger("a girl,  smiling", "") == "a girl, smiling"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of mk01 at night", "a photo of mk01 at night"),
        ("1girl, MK01, solo", "1girl, MK01, solo"),
        ("1girl, mk012", "mk01, 1girl, mk012"),
        ("", "mk01"),
    ],
)
def test_trigger_may_stay_where_the_caption_has_it(caption: str, expected: str) -> None:
    assert with_trigger(caption, "mk01", "keep") == expected


def test_trigger_with_brackets_is_found_with_and_without_backslashes() -> None:
    assert with_trigger(r"1girl, saber \(fate\), solo", "saber (fate)") == "saber (fate), 1girl, solo"
    assert with_trigger("1girl, Saber (Fate)", r"saber \(fate\)") == r"saber \(fate\), 1girl"


_TEXT = st.text(st.characters(exclude_characters="|{}\n\r", exclude_categories=["Cs"]), max_size=80)


@given(_TEXT, st.text(alphabet="abcXYZ019_", min_size=1, max_size=8))
def test_trigger_property(caption: str, trigger: str) -> None:
    result = with_trigger(caption, trigger)
    tags = [tag.strip() for tag in result.split(",")]
    assert tags[0] == trigger or tags[0].startswith(f"{trigger} ")
    assert trigger.casefold() not in [tag.casefold() for tag in tags[1:]]
    assert with_trigger(result, trigger) == result
    assert "\n" not in result
    # no other tag is lost or cut; a first "trigger class" only takes on the trigger's spelling
    before = [" ".join(tag.split()).casefold() for tag in caption.split(",")]
    assert [tag for tag in before if tag and tag != trigger.casefold()] == [
        tag.casefold() for tag in tags if tag.casefold() != trigger.casefold()
    ]


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
def test_edit_without_rules_only_tidies(tags: list[str]) -> None:
    expected = list(dict.fromkeys(" ".join(tag.split()) for tag in tags if tag.strip()))
    assert edit_tags(",".join(tags), CaptionSettings()) == ", ".join(expected)


def test_frequency_table_counts_captions_not_occurrences() -> None:
    captions = ["a, b, a", "b", "c, b"]
    assert tag_frequency(captions) == {"b": 3, "a": 1, "c": 1}
    assert list(tag_frequency(captions)) == ["b", "a", "c"]
    assert Counter(tag_frequency(captions)) == Counter(tag for c in captions for tag in set(c.split(", ")))


def test_escaped_brackets_do_not_change_the_count() -> None:
    assert tag_frequency([r"saber \(fate\), girl", "saber (fate)"]) == {"saber (fate)": 2, "girl": 1}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((r"saber \(fate\)",), "1girl, solo, blonde hair, hair ribbon, long_hair"),
        (("saber_(Fate)",), "1girl, solo, blonde hair, hair ribbon, long_hair"),
        (("1girl,solo",), r"saber \(fate\), blonde hair, hair ribbon, long_hair"),
        (("*hair*",), r"1girl, solo, saber \(fate\)"),
        (("*_hair",), r"1girl, solo, saber \(fate\), hair ribbon"),
        (("hair",), r"1girl, solo, saber \(fate\), blonde hair, hair ribbon, long_hair"),
        ((r"\*hair\*", "saber (*"), "1girl, solo, blonde hair, hair ribbon, long_hair"),
    ],
)
def test_removal_rules(rules: tuple[str, ...], expected: str) -> None:
    caption = r"1girl, solo, saber \(fate\), blonde hair, hair ribbon, long_hair"
    assert edit_tags(caption, CaptionSettings(remove=rules)) == expected


def test_rules_without_a_match_are_reported() -> None:
    rules = TagRules(CaptionSettings(remove=("solo", "sollo, *eyes"), replace={"gray hair": "grey hair", "1gril": "1girl"}))
    assert [rules.edit(text) for text in ("solo, gray hair", "1girl")] == ["grey hair", "1girl"]
    assert rules.unmatched() == [
        f"captions.{name} matched no tag: {rule}. Check the spelling; a rule is a whole tag, or a part with *."
        for name, rule in (("remove", "'sollo, *eyes'"), ("replace", "'1gril'"))
    ]


def test_sections_of_kept_tokens_and_lines_stay_apart() -> None:
    rules = CaptionSettings(order="alphabetical", remove=("bad",))
    assert edit_tags("z, y ||| c, bad, b, z ||| e, d", rules) == "y, z ||| b, c ||| d, e"
    assert edit_tags("b, a\nbad\nd, c", rules) == "a, b\nc, d"
    assert edit_tags("b, {y, x|w}, a", rules) == "a, b, {y, x|w}"
