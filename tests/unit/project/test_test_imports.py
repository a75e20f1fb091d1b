"""Test modules and conftest files are never imported: what several tests use is in helper files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


def imported(path: Path) -> Iterator[str]:
    """The last part of each module that a file imports, and each imported name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[2] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").rpartition(".")[2]
            yield from (module, *(alias.name for alias in node.names))


def modules_in(names: Iterator[str], modules: set[str]) -> list[str]:
    return sorted(name for name in names if name in modules or name == "conftest")


@pytest.mark.parametrize("folder", ["browser", "contract", "server", "tools", "unit"])
def test_no_test_imports_a_test(folder: str) -> None:
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    found = {str(path.relative_to(TESTS)): modules_in(imported(path), modules) for path in (TESTS / folder).rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_both_ways_to_import_a_test_are_found(tmp_path: Path) -> None:
    path = tmp_path / "test_new.py"
    path.write_text(
        "from tests.unit.test_run import calls\nfrom . import test_run\nfrom tests.unit import conftest\nimport json\n", encoding="utf-8"
    )
    assert modules_in(imported(path), {"test_run"}) == ["conftest", "test_run", "test_run"]
