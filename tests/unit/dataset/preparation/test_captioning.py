"""Captions of prepared images: where they come from, and edits by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS, listed_captions, listing
from trainer.dataset import (
    CaptionSettings,
    PrepareSettings,
    SourceImage,
    TrainingHints,
    open_dataset,
    prepare_dataset,
)


def test_changed_source_caption_changes_the_hash_but_no_image(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS)
    (source / "1.txt").write_text("smile", encoding="utf-8")
    second = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert second.reused == 2 and second.dataset.hash != first.dataset.hash
    assert [item.caption for item in second.dataset.items] == ["mk01 girl", "mk01, smile"]


def test_caption_edited_in_the_dataset_is_used_and_survives(tmp_path: Path) -> None:
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


def test_kohya_folder_name_is_the_caption_without_a_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "10_mk01 girl", 1)
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="mk01", resolution=64)).dataset
    assert dataset.items[0].caption == "mk01 girl"


def test_lone_surrogates_in_captions_are_accepted(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a girl \\ud83d"}\n', encoding="utf-8")
    assert prepare_dataset(source, tmp_path / "out", SETTINGS).dataset.items[0].caption == "mk01, a girl ?"
    batch = [SourceImage(drawing(0), "a\ud83d", "smile \ud83d"), SourceImage(drawing(1), "b")]
    assert prepare_dataset(batch, tmp_path / "batch", SETTINGS).dataset.items[0].caption == "mk01, smile ?"


def test_duplicate_with_a_caption_stays(tmp_path: Path) -> None:
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


def write(path: Path, data: Any) -> None:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def test_kohya_folder_name_comes_before_the_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "10_miku girl", 1)
    folder_of(tmp_path / "in" / "5_rin boy", 1, first=1)
    folder_of(tmp_path / "in" / "other", 1, first=2)
    settings: dict[str, Any] = {"trigger": "tok", "class_description": "anime_face", "resolution": 64}
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(**settings))
    assert sorted(item.caption for item in result.dataset.items) == ["tok anime_face", "tok, miku girl", "tok, rin boy"]
    assert any("2 images had no caption and got the name of their folder, not the class 'anime_face'" in w for w in result.report.warnings)
    plain = PrepareSettings(**settings, captions=CaptionSettings(source="instance"))
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", plain)
    assert {item.caption for item in result.dataset.items} == {"tok anime_face"}


def test_set_without_any_caption_is_reported(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    settings = PrepareSettings(trigger="tok", class_description="girl", resolution=64)
    warnings = prepare_dataset(source, tmp_path / "out", settings).report.warnings
    assert any(text.startswith("No image has a caption: all 3 got the instance prompt 'tok girl'.") for text in warnings)


def test_rules_without_a_match_are_in_the_report(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    write(source / "0.txt", r"1girl, saber \(fate\)")
    rules = CaptionSettings(remove=("saber_(fate)", "sollo"))
    result = prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="tok", resolution=64, captions=rules))
    assert [item.caption for item in result.dataset.items] == ["tok, 1girl", "tok"]
    assert any("captions.remove matched no tag: 'sollo'" in text for text in result.report.warnings)


@pytest.mark.parametrize(
    "data",
    [
        "青い髪、少女\r\n笑顔".encode("cp932"),
        "fiancée, smile".encode("cp1252"),
        "a girl\nblue hair\n".encode("utf-16"),
        b"\xef\xbb\xbf1girl,,  solo\r\n\r\nsmile,",
        b"1girl\nsolo",
    ],
)
def test_edited_caption_is_read_like_one_in_a_source_folder(tmp_path: Path, data: bytes) -> None:
    source = folder_of(tmp_path / "in", 1)
    settings = PrepareSettings(trigger="tok", resolution=64)
    made = prepare_dataset(source, tmp_path / "out", settings).dataset
    text_file = made.path / made.items[0].file.replace(".png", ".txt")
    text_file.write_bytes(data)
    (source / "0.txt").write_bytes(data)
    wanted = listed_captions(source)["0.png"]
    assert wanted is not None and "\ufffd" not in wanted
    opened = open_dataset(made.path)
    assert opened.items[0].caption == wanted
    warnings = [text for text in listing(source).warnings if "is not UTF-8" in text]
    assert [text.replace(text_file.name, "0.txt") for text in opened.notes] == warnings
    again = prepare_dataset(source, tmp_path / "out", settings)
    assert again.dataset.hash == opened.hash and again.dataset.items[0].caption == wanted, "kept as it is"
    assert text_file.read_bytes() == data
    assert [text.replace(text_file.name, "0.txt") in again.report.warnings for text in opened.notes] == [True] * len(warnings)


def test_edited_lines_stay_apart_with_wildcards(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    write(source / "0.txt", "a cat\na dog")
    settings = PrepareSettings(trigger="tok", resolution=64, training=TrainingHints(wildcards=True))
    made = prepare_dataset(source, tmp_path / "out", settings).dataset
    assert made.items[0].caption == "tok, a cat\ntok, a dog"
    text_file = made.path / made.items[0].file.replace(".png", ".txt")
    text_file.write_text("tok, a cat\ntok, a hat\ntok, a dog\n", encoding="utf-8")
    result = prepare_dataset(source, tmp_path / "out", settings)
    assert result.dataset.items[0].caption == "tok, a cat\ntok, a hat\ntok, a dog"
    assert result.dataset.hash == open_dataset(made.path).hash != made.hash
    text_file.unlink()
    without = settings.model_copy(update={"training": TrainingHints()})
    assert prepare_dataset(source, tmp_path / "out", without).dataset.items[0].caption == "tok, a cat, a dog"
