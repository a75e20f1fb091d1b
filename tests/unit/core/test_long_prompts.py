"""Captions and prompts of hundreds of thousands of characters that are all one unfinished bracket, brace or number.

A test that fails here takes hours: searching used to take time in proportion to the square of the length.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.core.prompt_syntax import EMPHASIS, escape, weighted_parts
from trainer.dataset.captions.tags import WILDCARD, split_tags
from trainer.dataset.loading.kohya_captions import choose_variant
from trainer.lorafile import called_by, inspect_lora

LONG = 300_000


@pytest.mark.parametrize(
    "text",
    ["(:" + "1" * LONG, "(:" + " " * LONG, "(" * LONG, "(:1" * LONG, "(" + ":" * LONG],
    ids=["digits", "spaces", "brackets", "numbers", "colons"],
)
def test_unfinished_emphasis_is_text(text: str) -> None:
    assert EMPHASIS.search(text) is None
    assert escape(text) == text.replace("(", r"\(")


@pytest.mark.parametrize("text", ["{" + "|" * LONG, "{" * LONG, "{a|" * LONG], ids=["bars", "braces", "choices"])
def test_unfinished_choice_is_text(text: str) -> None:
    assert WILDCARD.search(text) is None
    assert choose_variant("{b|c}, " + text, lambda parts: parts[0]) == "b, " + text.replace("{{", "{")
    assert split_tags(text)


@pytest.mark.parametrize(("text", "number"), [("(word:1.)", "1."), ("(a:.5)", ".5"), ("((x): +12.25 )", None), ("(a b : -3 )", "3")])
def test_numbers_of_emphasis(text: str, number: str | None) -> None:
    found = EMPHASIS.search(text)
    assert (found and found[1]) == number


def test_brackets_deeper_than_any_prompt_are_text() -> None:
    """Deeper than Python's recursion limit."""
    parts = weighted_parts("(" * 5000 + "a" + ")" * 5000)
    assert "".join(text for text, _ in parts) == "(" * 4900 + "a" + ")" * 4900
    assert {round(weight / 1.1**100, 9) for _, weight in parts} == {1.0}
    assert weighted_parts("((a:1.5), (b))") == [("a", 1.5), (", ", pytest.approx(1.1)), ("b", pytest.approx(1.21))]


def test_trigger_words_of_a_file_are_limited(tmp_path: Path) -> None:
    """Nodes compare each with every other."""
    words = [f"word{number}" for number in range(100_000)]
    save_file(lora_tensors(small_layers()), tmp_path / "a.safetensors", {"modelspec.trigger_phrase": ", ".join(["x" * 2000, *words])})
    assert inspect_lora(tmp_path / "a.safetensors").trigger_words == tuple(words[:256])
    save_file(lora_tensors(small_layers()), tmp_path / "b.safetensors")
    (tmp_path / "b.json").write_text('{"activation text": "' + ", ".join(words[:60_000]) + '"}', encoding="utf-8")
    assert called_by(inspect_lora(tmp_path / "b.safetensors")) == tuple(words[:256])
