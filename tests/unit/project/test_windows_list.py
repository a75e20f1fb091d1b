"""The list of tests that fail under Wine names tests that exist."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_tests_that_are_known_to_fail_under_wine_exist() -> None:
    known = json.loads((ROOT / "tests" / "tools" / "windows_known.json").read_text(encoding="utf-8"))
    names = [*known["fails"], *known["crashes"]]
    assert names
    for name in names:
        path, _, test = name.partition("::")
        assert f"def {test.partition('(')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), name
