"""Preparing as a whole: the same source gives the same dataset, with everything that was left out in the report."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.drawings import FILES, drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.dataset import (
    BucketSettings,
    CaptionSettings,
    Dataset,
    PrepareSettings,
    SourceImage,
    TrainingHints,
    open_dataset,
    prepare_dataset,
)


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


def test_pngs_are_byte_identical_and_threads_do_not_matter(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 8, (200, 150))
    settings = PrepareSettings(trigger="mk01", class_description="girl", resolution=64, buckets=BucketSettings(step=8))
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", settings, workers=4).dataset
    second = prepare_dataset(tmp_path / "in", tmp_path / "b", settings, workers=0).dataset
    a, b = contents(first.path), contents(second.path)
    assert a == b and len([name for name in a if name.endswith(".png")]) == 8
    assert first.hash == second.hash


def test_png_has_no_time_stamps_or_metadata(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "secret prompt")
    (tmp_path / "in").mkdir()
    drawing(1).save(tmp_path / "in" / "a.png", pnginfo=info, exif=Image.Exif().tobytes())
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    assert b"secret" not in dataset.image_path(dataset.items[0]).read_bytes()


def test_unusable_files_are_listed_and_the_rest_is_prepared(tmp_path: Path) -> None:
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
def test_hash_covers_what_affects_training(tmp_path: Path, change: dict[str, object]) -> None:
    folder_of(tmp_path / "in", 2, (200, 160))
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", SETTINGS).dataset
    second = prepare_dataset(tmp_path / "in", tmp_path / "b", PrepareSettings.model_validate({**SETTINGS.model_dump(), **change})).dataset
    assert first.hash != second.hash


def test_hash_does_not_depend_on_paths(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    first = prepare_dataset(tmp_path / "in", tmp_path / "a", SETTINGS).dataset
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert open_dataset(tmp_path / "moved" / "mk01_girl").hash == first.hash
    assert prepare_dataset(tmp_path / "elsewhere", tmp_path / "b", SETTINGS).dataset.hash == first.hash


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


def test_source_without_usable_images_is_an_error_with_reasons(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3, (30, 30))
    with pytest.raises(UserError) as caught:
        prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert "None of the 3 images can be used: 3 too small" in caught.value.message
    assert "smallest side" in caught.value.hint


def test_missing_source_and_invalid_folders_are_errors(tmp_path: Path) -> None:
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


def test_manifest_has_sources_and_steps(tmp_path: Path) -> None:
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
def test_names_that_are_not_utf_8_are_accepted(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("captions", [True, False])
def test_missing_tagger_is_an_error_even_if_unused(tmp_path: Path, captions: bool) -> None:
    source = folder_of(tmp_path / "in", 1)
    if captions:
        (source / "0.txt").write_text("smile", encoding="utf-8")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--trigger", "mk01", "--resolution", "64"]
    assert main([*arguments, "--tagger", str(tmp_path / "nope")]) == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"selected_tags\.csv is missing"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings.model_validate({"tagger": {"model": str(tmp_path / "model.onnx")}}))
    with pytest.raises(UserError, match=r"face model .* does not exist"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="mk01", face_model=str(tmp_path / "nope.onnx")))
