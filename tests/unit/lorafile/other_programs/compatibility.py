"""Results with other tools: the tests collect them in docs/compatibility.json, from which docs/compatibility.md is rendered.

ANIMELORA_RECORD=1 python -m pytest tests/unit/lorafile     # tests record their results
python -m tests.unit.lorafile.other_programs.compatibility                        # writes docs/compatibility.md
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

from trainer.core.files.writing import write_atomic

_DOCS = Path(__file__).resolve().parents[4] / "docs"
RESULTS = _DOCS / "compatibility.json"
PAGE = _DOCS / "compatibility.md"


class Result(TypedDict):
    """One row of the table."""

    tool: str
    version: str
    what: str
    finding: str
    how: str


def record(tool: str, version: str, what: str, finding: str, how: str) -> None:
    """Record a result. Tests call this after their last assertion; it does nothing without ANIMELORA_RECORD=1."""
    if os.environ.get("ANIMELORA_RECORD") != "1":
        return
    row = Result(tool=tool, version=version, what=what, finding=finding, how=how)
    rows = [old for old in load() if (old["tool"], old["version"], old["what"]) != (tool, version, what)]
    rows.append(row)
    rows.sort(key=lambda r: (r["tool"].lower(), r["version"], r["what"]))
    write_atomic(RESULTS, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def load() -> list[Result]:
    """All recorded results."""
    if not RESULTS.is_file():
        return []
    rows: list[Result] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return rows


def render(rows: list[Result]) -> str:
    """The page as Markdown."""
    parts = [(Path(__file__).parent / "compatibility_head.md").read_text(encoding="utf-8").rstrip(), ""]
    for tool in sorted({row["tool"] for row in rows}, key=str.lower):
        parts += [f"### {tool}", "", "| Version | What | Result | How it was checked |", "| --- | --- | --- | --- |"]
        parts += [f"| {r['version']} | {r['what']} | {r['finding']} | {r['how']} |" for r in rows if r["tool"] == tool]
        parts.append("")
    parts.append((Path(__file__).parent / "compatibility_tail.md").read_text(encoding="utf-8").rstrip())
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    write_atomic(PAGE, render(load()))
