"""Node texts and help pages are what ``python -m tests.tools.write_texts`` makes of the nodes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.write_texts import ROOT, generated_node_texts, untranslated


@pytest.fixture(scope="module")
def generated(description: dict[str, Any]) -> dict[str, str]:
    """What the tool would write, by path."""
    return generated_node_texts(description["nodes"])


def test_texts_and_help_pages_are_up_to_date(generated: dict[str, str]) -> None:
    outdated = [path for path, text in generated.items() if (ROOT / path).read_text(encoding="utf-8") != text]
    assert outdated == [], "run: python -m tests.tools.write_texts"


def test_every_language_has_every_help_page(generated: dict[str, str]) -> None:
    pages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "web" / "docs").rglob("*.md"))
    assert sorted(path for path in generated if path.startswith("web/docs/")) == pages


def test_every_text_is_translated(description: dict[str, Any]) -> None:
    assert list(untranslated(description["nodes"])) == []
