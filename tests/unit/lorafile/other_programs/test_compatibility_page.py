"""docs/compatibility.md matches the recorded results."""

from __future__ import annotations

from tests.unit.lorafile.other_programs.compatibility import PAGE, load, render


def test_page_is_up_to_date() -> None:
    rows = load()
    assert {row["tool"] for row in rows} >= {"ComfyUI", "A1111", "Forge"}
    assert PAGE.read_text(encoding="utf-8") == render(rows), "run: python -m tests.unit.lorafile.other_programs.compatibility"
