"""The node texts in every language and the help pages: complete, in step with each other, harmless to the frontend."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.tools.nodes.node_texts import LANGUAGES, help_page, node_texts

TRANSLATED = LANGUAGES[1:]


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every text by its place."""
    if isinstance(value, str):
        return {path: value}
    return {place: text for key, part in value.items() for place, text in flat(part, (*path, key)).items()}


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_is_translated(language: str) -> None:
    english, other = flat(node_texts("en")), flat(node_texts(language))
    assert set(other) == set(english)
    assert all(text.strip() for text in other.values())
    untouched = [place for place, text in other.items() if place[-1] in ("tooltip", "description") and text == english[place]]
    assert untouched == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_a_sign_that_the_translator_reads_as_syntax(language: str) -> None:
    # vue-i18n: {name}, @:linked and one | other are not plain text
    assert [text for text in flat(node_texts(language)).values() if re.search(r"[{}@|]", text)] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_numbers_survive_translation(language: str) -> None:
    number = re.compile(r"(?<!\w)\d+(?:\.\d+)?")
    other = flat(node_texts(language))
    for place, text in flat(node_texts("en")).items():
        if place[-1] in ("tooltip", "description"):
            wanted, found = set(number.findall(text)), set(re.findall(r"\d+(?:\.\d+)?", other[place]))
            assert wanted <= found, (place, wanted, found)


def tips(node: str, language: str) -> int:
    """How many lines a help page has under its first heading."""
    return len(re.findall(r"^- ", help_page(node, language).split("\n## ")[1], re.MULTILINE))


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_help_page_has_every_tip_that_the_english_one_has(language: str) -> None:
    counts = {node: tips(node, "en") for node in node_texts("en")}
    assert {node: tips(node, language) for node in counts} == counts
    assert min(counts.values()) > 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(language: str) -> None:
    for node, texts in node_texts(language).items():
        text = help_page(node, language)
        assert text.startswith("# ")
        assert texts["description"] in text
        for name, label in texts["inputs"].items():
            assert f"**{label['name']}**" in text, (node, name)
            assert f"({name})" in text or label["name"] in (name, name.replace("_", " "), "seed"), (node, name)
            assert label["tooltip"] in text, (node, name)
        for label in texts["outputs"].values():
            assert label["name"] in text, (node, label["name"])
