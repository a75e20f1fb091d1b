"""Size, crop, background and upscaling of prepared images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.drawings import FILES, drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS
from trainer.core.errors import UserError
from trainer.dataset import (
    BucketSettings,
    CleanSettings,
    PrepareSettings,
    open_dataset,
    prepare_dataset,
)


def test_centre_crop_equals_crop_after_resize(tmp_path: Path) -> None:
    drawing(4, (300, 200)).save(tmp_path / "a.png")
    item = prepare_dataset(tmp_path / "a.png", tmp_path / "out", SETTINGS).dataset.items[0]
    assert (item.crop_top_left, item.crop_right) == ((0, 16), 16)
    got = np.asarray(Image.open(tmp_path / "out" / "mk01_girl" / item.file), dtype=float)
    other = drawing(4, (300, 200)).resize((96, 64), Image.Resampling.LANCZOS).crop((16, 0, 80, 64))
    assert np.abs(got - np.asarray(other, dtype=float)).mean() < 1.0


def test_buckets_keep_aspect_ratios(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1, (640, 640))
    drawing(5, (640, 360)).save(source / "wide.png")
    drawing(6, (360, 640)).save(source / "tall.png")
    settings = PrepareSettings(trigger="mk01", resolution=256, buckets=BucketSettings(step=64, min_side=128))
    report = prepare_dataset(source, tmp_path / "out", settings).report
    assert report.buckets == {"192x320": 1, "256x256": 1, "320x192": 1}


def test_no_upscale_keeps_small_images(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1, (200, 140))
    settings = PrepareSettings(trigger="mk01", resolution=512, buckets=BucketSettings(no_upscale=True))
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", settings).dataset
    assert (dataset.items[0].width, dataset.items[0].height) == (192, 128)
    got = np.asarray(Image.open(dataset.image_path(dataset.items[0])))
    assert np.array_equal(got, np.asarray(drawing(0, (200, 140)))[0:128, 4:196]), "cut out, not resampled"


def test_no_crop_keeps_the_whole_image_and_masks_the_border(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1, (200, 100))
    settings = PrepareSettings(trigger="mk01", resolution=64, crop="none", background="#00ff00")
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", settings).dataset
    image = Image.open(dataset.image_path(dataset.items[0]))
    path = dataset.mask_path(dataset.items[0])
    assert path is not None
    mask = np.asarray(Image.open(path))
    assert image.size == (64, 64) and image.getpixel((5, 5)) == (0, 255, 0)
    assert (mask[:16] == 0).all() and (mask[48:] == 0).all() and (mask[16:48] == 255).all()


def test_alpha_is_replaced_by_the_background_or_becomes_a_mask(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(FILES / "alpha.png", tmp_path / "in")
    base = {"trigger": "mk01", "resolution": 64, "background": "#102030", "clean": CleanSettings(min_side=32)}
    plain = prepare_dataset(tmp_path / "in", tmp_path / "a", PrepareSettings.model_validate({**base, "alpha": "background"})).dataset
    masked = prepare_dataset(tmp_path / "in", tmp_path / "b", PrepareSettings.model_validate({**base, "alpha": "mask"})).dataset
    assert plain.items[0].mask is None
    assert Image.open(plain.image_path(plain.items[0])).getpixel((60, 10)) == (16, 32, 48)
    path = masked.mask_path(masked.items[0])
    assert path is not None
    mask = Image.open(path)
    assert (mask.mode, mask.size) == ("L", (64, 64))
    assert (mask.getpixel((5, 30)), mask.getpixel((60, 30))) == (255, 0)
    assert masked.hash != plain.hash
    mask.putpixel((60, 30), 255)
    mask.save(path)
    assert open_dataset(masked.path).hash != masked.hash, "a mask that was painted over is trained, so it is another dataset"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a device, a pipe or a folder"):
        open_dataset(masked.path)


def test_upscale_model_is_used_for_small_images_only(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1, (64, 64))
    drawing(7, (300, 300)).save(source / "large.png")
    seen: list[tuple[int, int]] = []

    def upscaler(image: Image.Image) -> Image.Image:
        seen.append(image.size)
        return image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)

    settings = PrepareSettings(trigger="mk01", resolution=256, upscaler="4x-nearest")
    dataset = prepare_dataset(source, tmp_path / "out", settings, upscaler=upscaler).dataset
    assert seen == [(64, 64)]
    expected = drawing(0, (64, 64)).resize((256, 256), Image.Resampling.NEAREST)
    assert Image.open(dataset.image_path(dataset.items[0])).tobytes() == expected.tobytes()
    assert "upscaled 64x64 to 256x256 by 4x-nearest" in next(dataset.rows())["steps"]
    assert prepare_dataset(source, tmp_path / "out", settings, upscaler=upscaler).reused == 2
