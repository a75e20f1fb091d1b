"""Texts of a graph must be valid Unicode."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.mark.parametrize(("text", "found"), [("a \ud800", "U+D800"), ("\udfff", "U+DFFF"), ("\udc80b", "U+DC80")])
def test_a_lone_surrogate_is_rejected_by_the_name_of_its_input(helper: Callable[[str], ModuleType], text: str, found: str) -> None:
    text_inputs = helper("text_inputs")
    with pytest.raises(text_inputs.UserError, match="The text of title") as caught:
        text_inputs.require_valid_unicode({"steps": 3, "name": "猫", "title": text})
    assert found in str(caught.value)
    str(caught.value).encode("utf-8")


def test_valid_text_of_any_script_and_other_values_pass(helper: Callable[[str], ModuleType]) -> None:
    helper("text_inputs").require_valid_unicode({"title": "Zoë 猫 🎨 \ufffd \u202e\x00", "image": object(), "count": 3, "nothing": None})
