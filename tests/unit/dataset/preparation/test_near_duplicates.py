"""Sure repeats of one image are left out, doubtful pairs are shown, and a repeat's caption goes to the image that stays."""

from __future__ import annotations

import random
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from tests.unit.dataset.drawings import drawing
from tests.unit.dataset.helpers import WITHOUT_CLASS, captions_by_source, prepare_beside
from trainer.dataset import (
    CaptionSettings,
    CleanSettings,
    PrepareResult,
    prepare_dataset,
)
from trainer.dataset.images.signature import compute_signature, parse_signature

SIZE = (400, 400)


def figure(*, mouth: int = 8, hair: str = "#e0c060", size: tuple[int, int] = SIZE) -> Image.Image:
    """A standing figure with a small face: the mouth is ``mouth`` pixels high."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((150, 150, 250, 400), fill="#305090", outline="black", width=3)
    draw.ellipse((120, 20, 280, 180), fill=hair, outline="black", width=3)
    draw.ellipse((145, 50, 255, 170), fill="#f0d0b0", outline="black", width=3)
    for x in (175, 225):
        draw.ellipse((x - 10, 85, x + 10, 110), fill="#203040")
    draw.ellipse((180, 140 - mouth / 2, 220, 140 + mouth / 2), fill="#a02030", outline="black", width=2)
    draw.rectangle((40, 300, 110, 390), fill="#60a060", outline="black", width=3)
    return image.resize(size, Image.Resampling.LANCZOS)


def saved(folder: Path, **images: Image.Image) -> Path:
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return folder


def names(result: PrepareResult) -> set[str]:
    return {str(row["source"]) for row in result.dataset.rows()}


def line_drawing(seed: int) -> Image.Image:
    """Black in every pixel; the drawing is in the alpha channel."""
    alpha = Image.new("L", (200, 200), 0)
    draw, rng = ImageDraw.Draw(alpha), random.Random(seed)
    for _ in range(8):
        draw.line([(rng.randrange(200), rng.randrange(200)) for _ in range(3)], fill=255, width=6)
    image = Image.new("RGBA", alpha.size, (0, 0, 0, 0))
    image.putalpha(alpha)
    return image


def test_transparent_drawings_are_compared_on_the_background(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", **{f"{seed}": line_drawing(seed) for seed in range(12)})
    assert prepare_beside(source).kept == 12
    hidden = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    sprite = Image.fromarray(np.dstack([hidden, np.asarray(line_drawing(3))[..., 3]]).astype(np.uint8), "RGBA")
    pixels = np.asarray(sprite).copy()
    pixels[pixels[..., 3] == 255, :3] = 0  # what is seen stays black
    saved(source, cleaned=Image.fromarray(pixels, "RGBA"))
    result = prepare_beside(source)
    assert result.kept == 12 and {row.reason for row in result.rejected} == {"near duplicate"}


@pytest.mark.parametrize("mode", ["quality", "half", "larger"])
def test_resaved_image_is_left_out(tmp_path: Path, mode: str) -> None:
    source = saved(tmp_path / "in", a=figure(), b=drawing(1))
    if mode == "quality":
        figure().save(source / "again.jpg", quality=60)
    else:
        saved(source, again=figure(size=(200, 200) if mode == "half" else (700, 700)))
    result = prepare_beside(source)
    assert result.kept == 2 and not result.report.doubtful
    again = prepare_beside(source)
    assert again.kept == 2 and again.dataset.hash == result.dataset.hash


@pytest.mark.parametrize("other", [figure(mouth=20), figure(hair="#208080"), figure(hair="#e0a060")], ids=["expression", "teal", "auburn"])
def test_other_expression_and_other_hair_stay_and_are_reported(tmp_path: Path, other: Image.Image) -> None:
    result = prepare_beside(saved(tmp_path / "in", a=figure(), b=other), clean=CleanSettings(near_distance=40))
    assert names(result) == {"a.png", "b.png"}
    assert [set(doubt.sources) for doubt in result.report.doubtful] == [{"a.png", "b.png"}]
    assert "a.png and b.png: differ in a part" in result.report.text()
    page = (result.dataset.path / "report.html").read_text(encoding="utf-8")
    assert "Similar images that were kept" in page and all(page.count(item.file) >= 4 for item in result.dataset.items)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom))))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (ImageOps.mirror, "mirror image"),
        (lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05), "part of the other"),
        (lambda image: cropped(image, 0.025, 0.025, 0.025, 0.025), "part of the other"),
        (lambda image: cropped(image, 0, 0.05, 0, 0), "part of the other"),
        (lambda image: ImageOps.expand(image, 12, "white"), "part of the other"),
        (lambda image: ImageOps.expand(image, 12, "black"), "part of the other"),
    ],
    ids=["mirrored", "crop 5 % a side", "crop 5 % in all", "crop on top", "white border", "black border"],
)
def test_mirrored_cropped_and_bordered_copies_are_reported(tmp_path: Path, change: object, why: str) -> None:
    original = drawing(5, SIZE)
    source = saved(tmp_path / "in", a=original, b=change(original), c=drawing(6, SIZE), d=drawing(7, SIZE))  # type: ignore[operator]
    result = prepare_beside(source)
    assert result.kept == 4
    (doubt,) = result.report.doubtful
    assert set(doubt.sources) == {"a.png", "b.png"} and why in doubt.why
    decided = prepare_beside(source, clean=CleanSettings(leave_out=("b.png", "nowhere.png")))
    assert names(decided) == {"a.png", "c.png", "d.png"} and not decided.report.doubtful
    assert any("nowhere.png" in text for text in decided.report.warnings)


def test_unlike_images_are_not_reported(tmp_path: Path) -> None:
    result = prepare_beside(saved(tmp_path / "in", **{f"{seed}": drawing(seed) for seed in range(30)}))
    assert result.kept == 30 and not result.report.doubtful


def test_hashes_are_those_of_imagehash() -> None:
    image = drawing(3, (120, 120))
    parsed = parse_signature(compute_signature(image))
    assert parsed is not None
    expected = [image, ImageOps.mirror(image), image.crop((6, 6, 114, 114))]
    found = [parsed.phash, parsed.mirrored, parsed.crops[2]]
    for value, picture in zip(found, expected, strict=True):
        assert (value ^ int(str(imagehash.phash(picture, hash_size=16)), 16)).bit_count() <= 4


def test_caption_of_a_duplicate_goes_to_the_image_that_stays(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", large=figure(size=(700, 700)), small=figure(), other=drawing(1))
    (source / "small.txt").write_text("a standing girl", encoding="utf-8")
    result = prepare_beside(source)
    assert {row["source"]: row["caption"] for row in result.dataset.rows()}["large.png"] == "mk01, a standing girl"
    assert any("small.png to large.png" in text for text in result.report.warnings)
    (source / "large.txt").write_text("a woman", encoding="utf-8")
    conflict = prepare_beside(source)
    assert {row["source"]: row["caption"] for row in conflict.dataset.rows()}["large.png"] == "mk01, a woman"
    assert any("another caption" in text and "small.png and large.png" in text for text in conflict.report.warnings)


def test_edited_caption_goes_to_a_larger_copy_added_later(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", small=figure(), other=drawing(1))
    first = prepare_beside(source, captions=CaptionSettings())
    row = next(row for row in first.dataset.rows() if row["source"] == "small.png")
    (first.dataset.path / row["file"]).with_suffix(".txt").write_text("mk01, mine", encoding="utf-8")
    saved(source, large=figure(size=(700, 700)))
    second = prepare_beside(source)
    assert captions_by_source(second.dataset) == {"large.png": "mk01, mine", "other.png": "mk01"}


def test_largest_near_duplicate_stays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawing(1, (150, 150)).save(tmp_path / "in" / "a.png")
    drawing(1, (150, 150)).resize((600, 600), Image.Resampling.BICUBIC).save(tmp_path / "in" / "b.png")
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", WITHOUT_CLASS)
    assert [item.original_size for item in result.dataset.items] == [(600, 600)]
    assert result.rejected[0].message == "looks the same as b.png"


def test_recoloured_drawing_is_not_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = drawing(1)
    image.save(tmp_path / "in" / "a.png")
    hue, saturation, value = image.convert("HSV").split()
    Image.merge("HSV", (hue.point(lambda v: (v + 90) % 256), saturation, value)).convert("RGB").save(tmp_path / "in" / "b.png")
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", WITHOUT_CLASS).kept == 2


def test_near_duplicates_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawing(1).save(tmp_path / "in" / "a.png")
    drawing(1).save(tmp_path / "in" / "b.jpg", quality=90)
    settings = WITHOUT_CLASS.model_copy(update={"clean": CleanSettings(near_duplicates=False)})
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", settings).kept == 2
