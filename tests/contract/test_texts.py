"""Texts that a graph brings along: whole characters only."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.mark.parametrize(("text", "found"), [("a \ud800", "U+D800"), ("\udfff", "U+DFFF"), ("\udc80b", "U+DC80")])
def test_half_a_character_is_refused_by_the_name_of_its_input(helper: Callable[[str], ModuleType], text: str, found: str) -> None:
    texts = helper("texts")
    with pytest.raises(texts.UserError, match="The text of title") as caught:
        texts.require_text({"steps": 3, "name": "猫", "title": text})
    assert found in str(caught.value)
    str(caught.value).encode("utf-8")


def test_whole_characters_of_any_script_and_other_values_pass(helper: Callable[[str], ModuleType]) -> None:
    helper("texts").require_text({"title": "Zoë 猫 🎨 \ufffd \u202e\x00", "image": object(), "count": 3, "nothing": None})
