"""What is no image to be trained: masks, empty images, strips, and files of other kinds. None of it disappears without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.unit.dataset.pictures import drawing, folder_of
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.dataset.preparation.prepare_dataset import PrepareResult

SETTINGS = PrepareSettings(trigger="mk01", resolution=64)


def prepared(source: Path, **data: object) -> PrepareResult:
    settings = PrepareSettings.model_validate({"trigger": "mk01", "resolution": 64, **data})
    return prepare_dataset(source, source.parent / "out", settings)


def left_half(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def mask_of(result: PrepareResult, source: str) -> NDArray[np.uint8] | None:
    dataset = result.dataset
    index = next(number for number, row in enumerate(dataset.rows()) if row["source"] == source)
    path = dataset.mask_path(dataset.items[index])
    return None if path is None else np.asarray(Image.open(path))


NAMES = ["0-masklabel.png", "0_mask.png", "0-mask.png", "0.mask.png", "0_MaskLabel.PNG", "masks/0.png", "mask/0.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_mask_beside_its_image_is_taken_as_its_mask(tmp_path: Path, name: str) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / name).parent.mkdir(exist_ok=True)
    left_half((160, 160)).save(source / name)
    result = prepared(source)
    assert [row["source"] for row in result.dataset.rows()] == ["0.png", "1.png"]
    assert result.report.masks == 1 and result.rejected == ()
    mask = mask_of(result, "0.png")
    assert mask is not None and mask.shape == (64, 64)
    assert mask[:, :28].min() > 247 and mask[:, 36:].max() < 8
    assert mask_of(result, "1.png") is None


def test_mask_is_cropped_with_its_image_and_joins_its_transparency(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = drawing(1, (64, 128)).convert("RGBA")
    alpha = Image.new("L", (64, 128), 255)
    alpha.paste(0, (0, 48, 64, 56))
    image.putalpha(alpha)
    image.save(tmp_path / "in" / "a.png")
    left_half((128, 256)).save(tmp_path / "in" / "a-masklabel.png")  # twice the size, the same shape
    for crop, first in (("centre", 16), ("top", 48)):  # rows 32 to 96, and 0 to 64
        mask = mask_of(prepared(tmp_path / "in", shape="square", crop=crop, alpha="mask"), "a.png")
        expected = np.array(left_half((64, 64)))
        expected[first : first + 8] = 0
        assert mask is not None and np.array_equal(mask, expected), crop


def test_changed_mask_makes_the_image_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    left_half((160, 160)).save(source / "0_mask.png")
    first = prepared(source)
    left_half((160, 160)).rotate(90).save(source / "0_mask.png")
    second = prepared(source)
    assert second.reused == 1 and second.dataset.hash != first.dataset.hash


def test_mask_without_an_image_and_conditioning_images_are_left_out_by_name(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    for name in ("gone-masklabel.png", "0-condlabel.png"):
        drawing(7).save(source / name)
    drawing(8).save(source / "fox_mask.png")  # a drawing of a mask
    result = prepared(source)
    assert {rejection.source: rejection.message for rejection in result.rejected} == {
        "gone-masklabel.png": "a mask without its image",
        "0-condlabel.png": "a conditioning image of another trainer: not trained",
    }
    assert [row["source"] for row in result.dataset.rows()] == ["0.png", "fox_mask.png"]


@pytest.mark.parametrize(("mask", "problem"), [
    (drawing(9), "is in colour"), (left_half((160, 80)), "has another shape: 160x80"), (None, "cannot be read"),
])  # fmt: skip
def test_mask_that_does_not_fit_is_named(tmp_path: Path, mask: Image.Image | None, problem: str) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "0_mask.png").write_bytes(b"not an image")
    if mask is not None:
        mask.save(source / "0_mask.png")
    result = prepared(source)
    assert result.report.masks == 0 and len(result.dataset.items) == 1
    assert [text for text in result.report.warnings if "1 mask not used" in text and problem in text and "0.png" in text]


USELESS = {
    "white.png": (Image.new("RGB", (100, 100), "white"), "only one colour"),
    "black.jpg": (Image.new("RGB", (100, 100), (3, 3, 3)), "only one colour"),
    "clear.png": (Image.new("RGBA", (100, 100), (200, 30, 30, 0)), "fully transparent"),
    "strip.png": (drawing(2, (2310, 70)), "33 times as long as wide"),
    "high.png": (drawing(2, (70, 2310)), "33 times as long as wide"),
}


@pytest.mark.parametrize("name", USELESS)
def test_what_teaches_nothing_is_left_out_by_name(tmp_path: Path, name: str) -> None:
    source = folder_of(tmp_path / "in", 1)
    image, message = USELESS[name]
    image.save(source / name)
    result = prepared(source)
    assert result.kept == 1
    assert [(rejection.source, message in rejection.message) for rejection in result.rejected] == [(name, True)]


def test_white_lines_are_seen_on_another_background(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    lines = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
    lines.paste((255, 255, 255, 255), (20, 20, 60, 80))
    lines.save(source / "lines.png")
    result = prepared(source)
    assert "choose another background" in result.rejected[0].message and result.kept == 1
    assert prepared(source, background="#204060").kept == 2


def test_a_panorama_is_kept_where_the_setting_allows_it(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    drawing(2, (1200, 100)).save(source / "wide.png")
    assert [rejection.reason for rejection in prepared(source).rejected] == ["strip"]
    assert prepared(source, clean={"max_aspect": 12}).kept == 2


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    for name in ("a.mov", "b.avi", "c.MOV", "scan", "d.jpg_large", "readme.md", "0.txt", "notes.json", "Thumbs.db", "LICENSE"):
        (source / name).write_bytes(b"x")
    told = [text for text in prepared(source).report.warnings if text.startswith("Not read")]
    assert len(told) == 1
    assert all(part in told[0] for part in ("2 .mov", "1 .avi", "1 .jpg_large", "1 without an extension", "for example a.mov"))
    assert not any(part in told[0] for part in (".txt", ".json", ".db", "LICENSE", ".md"))
    for kind in ("zip", "tar"):
        made = Path(shutil.make_archive(str(tmp_path / "packed"), kind, source))
        assert [text for text in prepare_dataset(made, tmp_path / kind, SETTINGS).report.warnings if text.startswith("Not read: 2 .mov")]


def test_scan_that_is_too_large_says_what_to_do(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    drawing(5, (300, 200)).save(source / "scan.png")
    rejection = prepared(source, clean={"max_megapixels": 0.05}).rejected[0]
    assert (rejection.source, rejection.reason) == ("scan.png", "too large")
    assert "make it smaller, or raise clean.max_megapixels" in rejection.message
    assert prepared(source, clean={"max_megapixels": 0.06}).kept == 2


@pytest.mark.parametrize("what", ["missing", "empty", "regularisation", "useless"])
def test_a_source_that_gives_nothing_leaves_no_dataset_behind(tmp_path: Path, what: str) -> None:
    source = folder_of(tmp_path / "in", 0 if what == "empty" else 1)
    if what == "useless":
        Image.new("RGB", (90, 90)).save(source / "0.png")
    with pytest.raises(UserError):
        prepare_dataset(
            tmp_path / "nowhere" if what == "missing" else source, tmp_path / "out", SETTINGS,
            regularisation=tmp_path / "nowhere" if what == "regularisation" else None,
        )  # fmt: skip
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()] if (tmp_path / "out").exists() else []
    assert left == []
