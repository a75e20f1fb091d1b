"""Every link and picture in the documents leads to something that is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("demo/**/*.md")])


def links(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [first or second for first, second in LINK.findall(text)]


def anchors(path: Path) -> set[str]:
    """Anchors as GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        place = (document.parent / target).resolve() if target else document
        assert place.exists(), f"{document.name} links to {link}"
        if anchor:
            assert anchor in anchors(place), f"{document.name} links to {link}"


def test_images_in_the_documents_are_in_the_repository() -> None:
    try:
        tracked = subprocess.run(["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    used = {(path.parent / link).resolve() for path in documents() for link in links(path) if link.endswith((".png", ".jpg", ".webp"))}
    ours = {path.relative_to(ROOT).as_posix() for path in used if path.is_relative_to(ROOT / "docs")}
    assert ours - set(tracked) == set()


def test_every_route_is_in_the_documents() -> None:
    registered = re.findall(r'routes\.\w+\("([^"{]+)', (ROOT / "nodes" / "shared" / "routes.py").read_text(encoding="utf-8"))
    assert len(registered) >= 5
    page = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert [route for route in registered if f"`{route}" not in page] == []


def rows_with_tests(document: str) -> list[str]:
    """The rows of a table whose last column names tests, without headings."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith(("| ---", "| **", "| Fault", "| Guarantee"))]


ROWS = [*rows_with_tests("docs/faults.md"), *rows_with_tests("SECURITY.md")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_fault_and_every_guarantee_names_tests_that_are_there(row: str) -> None:
    named = re.findall(r"\[([^\]]+)\]\((?:\.\./)?(tests/[^)]+)\)", row.rstrip(" |").rpartition("|")[2])
    assert named
    for words, path in named:
        functions = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert f"test_{words.replace(' ', '_')}" in functions, f"{path} has no test {words!r}"
