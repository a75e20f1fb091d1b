"""Loss masks beside their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import prepare_beside
from trainer.dataset.preparation.prepare_dataset import PrepareResult


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
def test_mask_beside_its_image_is_used(tmp_path: Path, name: str) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / name).parent.mkdir(exist_ok=True)
    left_half((160, 160)).save(source / name)
    result = prepare_beside(source)
    assert [row["source"] for row in result.dataset.rows()] == ["0.png", "1.png"]
    assert result.report.masks == 1 and result.rejected == ()
    mask = mask_of(result, "0.png")
    assert mask is not None and mask.shape == (64, 64)
    assert mask[:, :28].min() > 247 and mask[:, 36:].max() < 8
    assert mask_of(result, "1.png") is None


def test_mask_is_cropped_with_its_image_and_combined_with_its_transparency(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = drawing(1, (64, 128)).convert("RGBA")
    alpha = Image.new("L", (64, 128), 255)
    alpha.paste(0, (0, 48, 64, 56))
    image.putalpha(alpha)
    image.save(tmp_path / "in" / "a.png")
    left_half((128, 256)).save(tmp_path / "in" / "a-masklabel.png")  # twice the size, the same shape
    for crop, first in (("centre", 16), ("top", 48)):  # rows 32 to 96, and 0 to 64
        mask = mask_of(prepare_beside(tmp_path / "in", shape="square", crop=crop, alpha="mask"), "a.png")
        expected = np.array(left_half((64, 64)))
        expected[first : first + 8] = 0
        assert mask is not None and np.array_equal(mask, expected), crop


def test_image_is_made_again_when_its_mask_changed(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    left_half((160, 160)).save(source / "0_mask.png")
    first = prepare_beside(source)
    left_half((160, 160)).rotate(90).save(source / "0_mask.png")
    second = prepare_beside(source)
    assert second.reused == 1 and second.dataset.hash != first.dataset.hash


def test_mask_without_an_image_and_conditioning_images_are_left_out(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    for name in ("gone-masklabel.png", "0-condlabel.png"):
        drawing(7).save(source / name)
    drawing(8).save(source / "fox_mask.png")  # a drawing of a mask
    result = prepare_beside(source)
    assert {rejection.source: rejection.message for rejection in result.rejected} == {
        "gone-masklabel.png": "a mask without its image",
        "0-condlabel.png": "a conditioning image of another trainer: not trained",
    }
    assert [row["source"] for row in result.dataset.rows()] == ["0.png", "fox_mask.png"]


@pytest.mark.parametrize(("mask", "problem"), [
    (drawing(9), "is in colour"), (left_half((160, 80)), "has another shape: 160x80"), (None, "cannot be read"),
])  # fmt: skip
def test_mask_that_does_not_fit_is_reported(tmp_path: Path, mask: Image.Image | None, problem: str) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "0_mask.png").write_bytes(b"not an image")
    if mask is not None:
        mask.save(source / "0_mask.png")
    result = prepare_beside(source)
    assert result.report.masks == 0 and len(result.dataset.items) == 1
    assert [text for text in result.report.warnings if "1 mask not used" in text and problem in text and "0.png" in text]
