"""Images from which nothing can be learned, and files of other kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import prepare_beside

USELESS = {
    "white.png": (Image.new("RGB", (100, 100), "white"), "only one colour"),
    "black.jpg": (Image.new("RGB", (100, 100), (3, 3, 3)), "only one colour"),
    "clear.png": (Image.new("RGBA", (100, 100), (200, 30, 30, 0)), "fully transparent"),
    "strip.png": (drawing(2, (2310, 70)), "33 times as long as wide"),
    "high.png": (drawing(2, (70, 2310)), "33 times as long as wide"),
}


@pytest.mark.parametrize("name", USELESS)
def test_blank_images_and_strips_are_left_out(tmp_path: Path, name: str) -> None:
    source = folder_of(tmp_path / "in", 1)
    image, message = USELESS[name]
    image.save(source / name)
    result = prepare_beside(source)
    assert result.kept == 1
    assert [(rejection.source, message in rejection.message) for rejection in result.rejected] == [(name, True)]


def test_white_lines_are_kept_on_another_background(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    lines = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
    lines.paste((255, 255, 255, 255), (20, 20, 60, 80))
    lines.save(source / "lines.png")
    result = prepare_beside(source)
    assert "choose another background" in result.rejected[0].message and result.kept == 1
    assert prepare_beside(source, background="#204060").kept == 2


def test_panorama_is_kept_if_the_setting_allows_it(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    drawing(2, (1200, 100)).save(source / "wide.png")
    assert [rejection.reason for rejection in prepare_beside(source).rejected] == ["strip"]
    assert prepare_beside(source, clean={"max_aspect": 12}).kept == 2


def test_too_large_scan_is_rejected_with_a_hint(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    drawing(5, (300, 200)).save(source / "scan.png")
    rejection = prepare_beside(source, clean={"max_megapixels": 0.05}).rejected[0]
    assert (rejection.source, rejection.reason) == ("scan.png", "too large")
    assert "make it smaller, or raise clean.max_megapixels" in rejection.message
    assert prepare_beside(source, clean={"max_megapixels": 0.06}).kept == 2
