"""bandit finds nothing in what people install; each finding that is let through says here or in its line why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {
    "B101": "assert only tells the type checker what is known; no check that guards anything is one",
    "B105": "names of tensors and tokens that contain the word 'token'",
    "B311": "random numbers order pictures and captions; none is a secret",
}


def scan(*paths: str) -> list[tuple[str, str, int]]:
    """bandit's findings: test, file, line."""
    pytest.importorskip("bandit", reason="bandit is not installed: pip install -e '.[test]'")
    command = [sys.executable, "-m", "bandit", "-q", "-r", *paths, "-f", "json", "--skip", ",".join(ALLOWED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    report = json.loads(done.stdout)
    assert not report["errors"]
    return [(each["test_id"], each["filename"], each["line_number"]) for each in report["results"]]


@pytest.mark.seconds
def test_bandit_finds_nothing_in_the_pack() -> None:
    assert scan("trainer", "nodes", "__init__.py") == []


def test_bandit_finds_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\nos.system(input())\n", encoding="utf-8")
    assert [finding[0] for finding in scan(str(tmp_path))] == ["B605"]
