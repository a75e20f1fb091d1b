"""Preparing as a whole: what is kept, what is left out, what is reused, and that the result is the same everywhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.unit.dataset.pictures import FILES, drawing, folder_of
from trainer.core.errors import Cancelled, UserError
from trainer.dataset import (
    BucketSettings,
    CaptionSettings,
    CleanSettings,
    Dataset,
    PrepareSettings,
    SourceImage,
    TrainingHints,
    open_dataset,
    prepare_dataset,
)
from trainer.dataset.preparation.progress import WAITING_FOR_FOLDER

ROOT = Path(__file__).parents[3]
SETTINGS = PrepareSettings(trigger="mk01", class_description="girl", resolution=64)


def contents(folder: Path) -> dict[str, str]:
    """Relative name -> hash of every file a trainer or a person looks at."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".prepare" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_folder_of_128_px_becomes_512_px_dataset(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3, (128, 128))
    dataset = prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", class_description="anime face")).dataset
    assert dataset.path == tmp_path / "mk01_anime face"
    assert [(i.width, i.height, i.original_size, i.caption) for i in dataset.items] == [(512, 512, (128, 128), "mk01 anime face")] * 3
    image = Image.open(dataset.image_path(dataset.items[0]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (512, 512))
    expected = np.asarray(drawing(0, (128, 128)).resize((512, 512), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(image), expected)
    assert (dataset.path / dataset.items[0].file).with_suffix(".txt").read_text(encoding="utf-8") == "mk01 anime face\n"


def test_centre_crop_equals_crop_after_resize(tmp_path: Path) -> None:
    drawing(4, (300, 200)).save(tmp_path / "a.png")
    item = prepare_dataset(tmp_path / "a.png", tmp_path / "out", SETTINGS).dataset.items[0]
    assert (item.crop_top_left, item.crop_right) == ((0, 16), 16)
    got = np.asarray(Image.open(tmp_path / "out" / "mk01_girl" / item.file), dtype=float)
    other = drawing(4, (300, 200)).resize((96, 64), Image.Resampling.LANCZOS).crop((16, 0, 80, 64))
    assert np.abs(got - np.asarray(other, dtype=float)).mean() < 1.0


def test_pngs_are_byte_identical_and_threads_do_not_matter(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 8, (200, 150))
    settings = PrepareSettings(trigger="mk01", class_description="girl", resolution=64, buckets=BucketSettings(step=8))
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", settings, workers=4).dataset
    second = prepare_dataset(tmp_path / "in", tmp_path / "b", settings, workers=0).dataset
    a, b = contents(first.path), contents(second.path)
    assert a == b and len([name for name in a if name.endswith(".png")]) == 8
    assert first.hash == second.hash


def test_time_stamps_and_metadata_do_not_reach_the_png(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "secret prompt")
    (tmp_path / "in").mkdir()
    drawing(1).save(tmp_path / "in" / "a.png", pnginfo=info, exif=Image.Exif().tobytes())
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    assert b"secret" not in dataset.image_path(dataset.items[0]).read_bytes()


def test_everything_unusable_is_listed_and_the_rest_is_prepared(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3, (300, 300))
    (source / "cut.jpg").write_bytes((FILES / "plain.jpg").read_bytes()[:300])
    (source / "fake.png").write_bytes(b"<!DOCTYPE html>")
    (source / "empty.webp").write_bytes(b"")
    drawing(9, (300, 20)).save(source / "thin.png")
    shutil.copy(source / "0.png", source / "copy of 0.png")
    drawing(1, (300, 300)).save(source / "1 again.jpg", quality=85)
    drawing(2, (300, 300)).resize((200, 200)).save(source / "2 small.webp")
    before = contents(source)
    result = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert {r.source: r.reason for r in result.rejected} == {
        "cut.jpg": "truncated",
        "fake.png": "unreadable",
        "empty.webp": "unreadable",
        "thin.png": "too small",
        "copy of 0.png": "duplicate",
        "1 again.jpg": "near duplicate",
        "2 small.webp": "near duplicate",
    }
    assert result.kept == len(result.dataset.items) == 3
    assert contents(source) == before, "the source is never changed"
    text = result.report.text()
    assert all(r.source in text and r.message in text for r in result.rejected)
    page = (result.dataset.path / "report.html").read_text(encoding="utf-8")
    assert all(r.source in page for r in result.rejected)


def test_largest_of_near_duplicates_stays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawing(1, (150, 150)).save(tmp_path / "in" / "a.png")
    drawing(1, (150, 150)).resize((600, 600), Image.Resampling.BICUBIC).save(tmp_path / "in" / "b.png")
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert [item.original_size for item in result.dataset.items] == [(600, 600)]
    assert result.rejected[0].message == "looks the same as b.png"


def test_recoloured_drawing_is_not_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = drawing(1)
    image.save(tmp_path / "in" / "a.png")
    hue, saturation, value = image.convert("HSV").split()
    Image.merge("HSV", (hue.point(lambda v: (v + 90) % 256), saturation, value)).convert("RGB").save(tmp_path / "in" / "b.png")
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).kept == 2


def test_near_duplicates_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawing(1).save(tmp_path / "in" / "a.png")
    drawing(1).save(tmp_path / "in" / "b.jpg", quality=90)
    settings = SETTINGS.model_copy(update={"clean": CleanSettings(near_duplicates=False)})
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", settings).kept == 2


def test_adding_one_picture_does_one(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 20)
    drawing(3).save(source / "3b.jpg", quality=80)  # a near duplicate must not be done again either
    first = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert (first.kept, first.reused) == (20, 0)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.dataset.path.iterdir() if path.suffix in (".png", ".txt")}
    drawing(99).save(source / "new.png")
    second = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert (second.kept, second.reused) == (21, 20)
    assert second.dataset.hash != first.dataset.hash
    for name, stamp in stamps.items():
        assert (first.dataset.path / name).stat().st_mtime_ns == stamp, f"{name} was written again"


def test_same_again_does_nothing_and_has_the_same_hash(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 4)
    first, second = (prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS) for _ in range(2))
    assert second.reused == 4 and second.dataset.hash == first.dataset.hash


def test_removed_source_leaves_the_dataset_and_other_files_stay(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    folder = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.path
    (folder / "my notes.txt").write_text("mine", encoding="utf-8")
    (folder / "looks like ours-0123456789.png").write_bytes(b"mine")
    (tmp_path / "in" / "1.png").unlink()
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert [item.file.split("-")[0] for item in result.dataset.items] == ["0", "2"]
    assert len(list(folder.glob("[02]-*.png"))) == 2 and not list(folder.glob("1-*"))
    assert (folder / "my notes.txt").exists() and (folder / "looks like ours-0123456789.png").exists()
    assert any("is not part of it" in warning for warning in result.report.warnings)


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 72},
        {"repeats": 2},
        {"training": TrainingHints(flip=True)},
        {"captions": CaptionSettings(suffix="masterpiece")},
        {"class_description": "girl", "crop": "none"},
    ],
    ids=str,
)
def test_hash_depends_on_what_a_trainer_sees(tmp_path: Path, change: dict[str, object]) -> None:
    folder_of(tmp_path / "in", 2, (200, 160))
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", SETTINGS).dataset
    second = prepare_dataset(tmp_path / "in", tmp_path / "b", PrepareSettings.model_validate({**SETTINGS.model_dump(), **change})).dataset
    assert first.hash != second.hash


def test_hash_does_not_depend_on_where_things_lie(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", SETTINGS).dataset
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert open_dataset(tmp_path / "moved" / "mk01_girl").hash == first.hash
    assert prepare_dataset(tmp_path / "elsewhere", tmp_path / "b", SETTINGS).dataset.hash == first.hash


def test_changed_source_caption_changes_hash_but_no_picture(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS)
    (source / "1.txt").write_text("smile", encoding="utf-8")
    second = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert second.reused == 2 and second.dataset.hash != first.dataset.hash
    assert [item.caption for item in second.dataset.items] == ["mk01 girl", "mk01, smile"]


def test_caption_edited_in_the_dataset_counts_and_survives(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    first = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    text = (first.path / first.items[0].file).with_suffix(".txt")
    text.write_text("mk01, my own words\r\n", encoding="utf-8")
    edited = open_dataset(first.path)
    assert edited.items[0].caption == "mk01, my own words" and edited.hash != first.hash
    again = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert again.dataset.items[0].caption == "mk01, my own words" and again.dataset.hash == edited.hash
    assert any("1 caption edited by hand" in warning for warning in again.report.warnings)
    text.unlink()
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.hash == first.hash


def test_damaged_result_is_made_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    first = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    first.image_path(first.items[1]).write_bytes(b"cut")
    first.image_path(first.items[2]).unlink()
    with pytest.raises(UserError, match=r"1 file of the dataset .* is missing"):
        open_dataset(first.path)
    second = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert second.reused == 1 and second.dataset.hash == first.hash


def test_stop_keeps_what_is_done(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 30)
    seen: list[str] = []
    with pytest.raises(Cancelled):
        prepare_dataset(
            tmp_path / "in", tmp_path / "out", SETTINGS, workers=1,
            progress=lambda done, total, text: seen.append(text), should_stop=lambda: seen.count("5.png") > 0,
        )  # fmt: skip
    done = len(list((tmp_path / "out" / "mk01_girl").glob("*.png")))
    assert 5 <= done < 30
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).reused >= 5


@pytest.mark.seconds
def test_killed_run_resumes(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 40, (700, 700))
    command = [sys.executable, str(ROOT / "trainer"), "prepare", "../in", "--out", "../out", "--trigger", "mk01", "--resolution", "1024"]
    work = tmp_path / "work"
    work.mkdir()
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL)
    out = tmp_path / "out" / "mk01"
    for _ in range(600):
        if len(list(out.glob("*.png"))) >= 3:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert child.wait() != 0
    (out / ".partial-left.png").write_bytes(b"half")
    done = len(list(out.glob("*.png"))) - 1
    assert done < 40, "it was not killed before it had ended"
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="mk01", resolution=1024))
    assert result.kept == 40
    assert 1 <= result.reused <= done
    assert not (out / ".partial-left.png").exists()
    clean = prepare_dataset(tmp_path / "in", tmp_path / "clean", PrepareSettings(trigger="mk01", resolution=1024)).dataset
    assert clean.hash == result.dataset.hash


def test_a_second_writer_waits_and_finds_what_the_first_one_made(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    waits, told = threading.Event(), []

    def progress(done: int, total: int, text: str) -> None:
        told.append(text)
        if text == WAITING_FOR_FOLDER:
            waits.set()

    with ThreadPoolExecutor(1) as pool:
        with FileLock(str(dataset_lock(tmp_path / "out" / "mk01_girl"))):
            second = pool.submit(prepare_dataset, tmp_path / "in", tmp_path / "out", SETTINGS, progress=progress)
            assert waits.wait(60)
            assert told[-1] == WAITING_FOR_FOLDER
        assert second.result(60).kept == 2
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).reused == 2


def test_a_writer_that_waits_hears_cancel(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1)
    told: list[str] = []
    with FileLock(str(dataset_lock(tmp_path / "out" / "mk01_girl"))), pytest.raises(Cancelled):
        prepare_dataset(
            tmp_path / "in",
            tmp_path / "out",
            SETTINGS,
            progress=lambda done, total, text: told.append(text),
            should_stop=lambda: told[-1:] == [WAITING_FOR_FOLDER],
        )
    assert not (tmp_path / "out" / "mk01_girl" / "manifest.json").exists()


def dataset_lock(folder: Path) -> Path:
    """The lock file of a dataset's folder, which is made for it."""
    (folder / ".prepare").mkdir(parents=True, exist_ok=True)
    return folder / ".prepare" / "lock"


def test_buckets_keep_aspect_ratios(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1, (640, 640))
    drawing(5, (640, 360)).save(source / "wide.png")
    drawing(6, (360, 640)).save(source / "tall.png")
    settings = PrepareSettings(trigger="mk01", resolution=256, buckets=BucketSettings(step=64, min_side=128))
    report = prepare_dataset(source, tmp_path / "out", settings).report
    assert report.buckets == {"192x320": 1, "256x256": 1, "320x192": 1}


def test_no_upscale_keeps_small_pictures(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1, (200, 140))
    settings = PrepareSettings(trigger="mk01", resolution=512, buckets=BucketSettings(no_upscale=True))
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", settings).dataset
    assert (dataset.items[0].width, dataset.items[0].height) == (192, 128)
    got = np.asarray(Image.open(dataset.image_path(dataset.items[0])))
    assert np.array_equal(got, np.asarray(drawing(0, (200, 140)))[0:128, 4:196]), "cut out, not resampled"


def test_no_crop_shows_the_whole_picture_and_masks_the_border(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1, (200, 100))
    settings = PrepareSettings(trigger="mk01", resolution=64, crop="none", background="#00ff00")
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", settings).dataset
    image = Image.open(dataset.image_path(dataset.items[0]))
    path = dataset.mask_path(dataset.items[0])
    assert path is not None
    mask = np.asarray(Image.open(path))
    assert image.size == (64, 64) and image.getpixel((5, 5)) == (0, 255, 0)
    assert (mask[:16] == 0).all() and (mask[48:] == 0).all() and (mask[16:48] == 255).all()


def test_alpha_goes_onto_the_background_or_becomes_a_mask(tmp_path: Path) -> None:
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


def test_upscale_model_is_used_for_small_pictures_only(tmp_path: Path) -> None:
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


def test_image_batch_equals_files_with_the_same_pixels(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / "1.txt").write_text("smile", encoding="utf-8")
    files = prepare_dataset(source, tmp_path / "a", SETTINGS).dataset
    batch = prepare_dataset([SourceImage(drawing(0), "0"), SourceImage(drawing(1), "1", "smile")], tmp_path / "b", SETTINGS).dataset
    assert batch.hash == files.hash
    assert [item.caption for item in batch.items] == ["mk01 girl", "mk01, smile"]


def test_regularisation_set_has_its_weight_and_no_trigger(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    folder_of(tmp_path / "reg", 2, first=10)
    (tmp_path / "reg" / "10.txt").write_text("a woman", encoding="utf-8")
    settings = SETTINGS.model_copy(update={"regularisation_weight": 0.5})
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", settings, regularisation=tmp_path / "reg").dataset
    rows = [(i.caption, i.is_regularisation, i.weight) for i in dataset.items]
    assert rows == [("mk01 girl", False, 1.0)] * 2 + [("a woman", True, 0.5), ("girl", True, 0.5)]
    assert all((dataset.path / item.file).is_file() for item in dataset.items)


def test_repeats_multiply_with_kohyas_number(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "10_mk01 girl", 1)
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS.model_copy(update={"repeats": 3})).dataset
    assert dataset.items[0].repeats == 30


def test_kohya_folder_name_is_the_caption_without_a_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "10_mk01 girl", 1)
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="mk01", resolution=64)).dataset
    assert dataset.items[0].caption == "mk01 girl"


def test_report_warns_about_what_beginners_miss(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2, (100, 100))
    drawing(5, (400, 100)).save(source / "wide.png")
    (source / "0.txt").write_text("smile", encoding="utf-8")
    warnings = " ".join(prepare_dataset(source, tmp_path / "out", PrepareSettings(resolution=256, shape="square")).report.warnings)
    parts = ("no trigger word", "Only 3 images", "2 images of 3 had no caption", "1 image of 3 loses a fifth", "enlarged more than 2×")
    for part in parts:
        assert part in warnings, part


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3, (30, 30))
    with pytest.raises(UserError) as caught:
        prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert "None of the 3 images can be used: 3 too small" in caught.value.message
    assert "smallest side" in caught.value.hint


def test_missing_source_and_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        prepare_dataset(tmp_path / "nowhere", tmp_path / "out", SETTINGS)
    folder_of(tmp_path / "mk01_girl", 1)
    with pytest.raises(UserError, match="is the folder that the dataset would be written to"):
        prepare_dataset(tmp_path / "mk01_girl", tmp_path, SETTINGS)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        prepare_dataset(tmp_path / "a.docx", tmp_path, SETTINGS)


def test_output_inside_the_source_is_not_read_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    for _ in range(2):
        assert prepare_dataset(tmp_path / "in", tmp_path / "in" / "datasets", SETTINGS).kept == 2


def test_manifest_names_sources_and_steps(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(FILES / "exif6.jpg", tmp_path / "in" / "photo.jpg")
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    row = next(dataset.rows())
    assert row["source"] == "photo.jpg" and row["source_format"] == "JPEG"
    assert row["source_sha256"] == hashlib.sha256((FILES / "exif6.jpg").read_bytes()).hexdigest()
    assert row["sha256"] == hashlib.sha256(dataset.image_path(dataset.items[0]).read_bytes()).hexdigest()
    assert row["steps"] == ["exif orientation", "crop top"]
    header = json.loads((dataset.path / "manifest.json").read_text(encoding="utf-8"))
    assert header["hash"] == dataset.hash and header["settings"]["resolution"] == 64


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    calls: list[tuple[int, int, str]] = []
    prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS, progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[2].endswith(".png")] == [(1, 3, "0.png"), (2, 3, "1.png"), (3, 3, "2.png")]
    assert all(0 < done <= total for done, total, _ in calls)


def image_bytes(dataset: Dataset) -> list[bytes]:
    return [dataset.image_path(item).read_bytes() for item in dataset.items]


def test_unicode_names_survive(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("青い髪.png", "emoji 🎨.png", "a#b%c.png")):
        drawing(seed).save(tmp_path / "in" / name)
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="ミク", resolution=64)).dataset
    assert dataset.name == "ミク" and len(image_bytes(dataset)) == 3
    assert io.BytesIO(image_bytes(dataset)[0]).read(4) == b"\x89PNG"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems have no such names")
def test_names_that_are_not_utf_8_do_not_end_the_run(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in" / os.fsdecode(b"10_\x83e\x83X girl"), 3)
    (source / "0.png").rename(source / os.fsdecode(b"\x83e\x83X\x83g.png"))
    (source / "1.png").rename(source / os.fsdecode(b"\x83f.png"))
    (source / os.fsdecode(b"\x83e\x83X\x83g.txt")).write_text("smile", encoding="utf-8")
    (source / os.fsdecode(b"\x83lost.txt")).write_text("lost", encoding="utf-8")
    (source / os.fsdecode(b"\x83cut.png")).write_bytes(b"")
    for _ in range(2):
        result = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="mk01", resolution=64))
    folder = "10_\ufffde\ufffdX girl"
    assert {row["source"] for row in result.dataset.rows()} == {f"{folder}/{n}.png" for n in ("\ufffde\ufffdX\ufffdg", "\ufffdf", "2")}
    assert sorted(item.caption for item in result.dataset.items) == ["mk01, smile"] + ["mk01, \ufffde\ufffdX girl"] * 2
    assert [rejection.source for rejection in result.rejected] == [f"{folder}/\ufffdcut.png"]
    assert any("example \ufffdlost.txt" in warning for warning in result.report.warnings)


def test_half_characters_in_captions_do_not_end_the_run(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a girl \\ud83d"}\n', encoding="utf-8")
    assert prepare_dataset(source, tmp_path / "out", SETTINGS).dataset.items[0].caption == "mk01, a girl ?"
    batch = [SourceImage(drawing(0), "a\ud83d", "smile \ud83d"), SourceImage(drawing(1), "b")]
    assert prepare_dataset(batch, tmp_path / "batch", SETTINGS).dataset.items[0].caption == "mk01, smile ?"


def test_of_equal_files_the_one_with_a_caption_stays(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    for folder in ("10_a", "20_b", "30_c"):
        (source / folder).mkdir()
        shutil.copy(source / "0.png", source / folder / "x.png")
    (source / "20_b" / "x.txt").write_text("red hair", encoding="utf-8")
    (source / "30_c" / "x.txt").write_text("blue hair", encoding="utf-8")
    (source / "0.png").unlink()
    shutil.copy(source / "1.png", source / "1 copy.png")
    result = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert [(row["source"], row["caption"], row["repeats"]) for row in result.dataset.rows()] == [
        ("1 copy.png", "mk01 girl", 1), ("2.png", "mk01 girl", 1), ("3.png", "mk01 girl", 1), ("20_b/x.png", "mk01, red hair", 20),
    ]  # fmt: skip
    assert {r.source: r.message for r in result.rejected} == {
        "1.png": "the same file as 1 copy.png", "10_a/x.png": "the same file as 20_b/x.png", "30_c/x.png": "the same file as 20_b/x.png",
    }  # fmt: skip
    warnings = [text for text in result.report.warnings if "duplicate" in text]
    assert warnings == [
        "1 duplicate had another caption than the image that stays: 30_c/x.png and 20_b/x.png.",
        "2 duplicates had another number of repeats than the image that stays: 10_a/x.png and 20_b/x.png; 30_c/x.png and 20_b/x.png.",
    ]


def test_picture_that_an_older_version_took_for_cut_off_is_tried_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    folder = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.path
    lines = [json.loads(line) for line in (folder / ".prepare" / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0] |= {"reason": "truncated", "message": "not a TIFF file", "file": "", "sha256": ""}
    (folder / ".prepare" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).kept == 2
