"""Pictures and captions are found in folders as people have them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.unit.dataset.pictures import drawing, folder_of
from trainer.core.errors import UserError
from trainer.dataset import CaptionSettings, PrepareSettings, prepare_dataset
from trainer.dataset.export.export_dataset import export_dataset
from trainer.dataset.reading.sources import Entry, SourceImage, SourceListing, from_folder, from_images, natural_key

CAPTIONS = CaptionSettings()


def found(root: Path) -> SourceListing:
    return from_folder(root, CAPTIONS)


def captions(root: Path) -> dict[str, str | None]:
    return {entry.name: entry.caption for entry in found(root).entries}


def entry(root: Path, name: str) -> Entry:
    return next(e for e in found(root).entries if e.name == name)


def test_nested_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "b/1.png", "a/x/y/7.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        drawing(1).save(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    drawing(1).save(tmp_path / ".hidden" / "no.png")
    (tmp_path / "__MACOSX").mkdir()
    drawing(1).save(tmp_path / "__MACOSX" / "._2.png")
    assert [e.name for e in found(tmp_path).entries] == ["2.png", "10.png", "a/x/y/7.png", "b/1.png"]


def test_natural_order_is_total_for_mixed_names() -> None:
    names = ["a10", "a2", "10a", "²x", "a", "A2b", "", "٣"]
    assert sorted(names, key=natural_key)[1] == "10a"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_sidecar_caption(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / f"0{suffix}").write_text("1girl, blue hair\n", encoding="utf-8")
    assert captions(tmp_path) == {"0.png": "1girl, blue hair", "1.png": None}


def test_sidecar_named_after_the_whole_file_name(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "0.png.txt").write_text("solo", encoding="utf-8")
    assert captions(tmp_path) == {"0.png": "solo"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfwith bom", "with bom"),
        ("wide".encode("utf-16"), "wide"),
        ("青い髪".encode("cp932"), "青い髪"),
        ("fiancée".encode("cp1252"), "fiancée"),
        (b"1girl\r\nsolo\r\n\r\nsmile,\n", "1girl, solo, smile"),
        (b" spaces   and\ttabs ", "spaces and tabs"),
    ],
)
def test_caption_files_of_other_editors(tmp_path: Path, data: bytes, expected: str) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "0.txt").write_bytes(data)
    assert captions(tmp_path) == {"0.png": expected}


def test_kohya_folders_give_repeats_and_instance(tmp_path: Path) -> None:
    folder_of(tmp_path / "img" / "10_miku girl", 1)
    folder_of(tmp_path / "img" / "3_rin", 1, first=1)
    folder_of(tmp_path / "reg" / "1_girl", 1, first=2)
    rows = {e.name: (e.repeats, e.instance, e.is_regularisation) for e in found(tmp_path).entries}
    assert rows == {
        "img/10_miku girl/0.png": (10, "miku girl", False),
        "img/3_rin/1.png": (3, "rin", False),
        "reg/1_girl/2.png": (1, "girl", True),
    }


def test_the_source_may_be_a_kohya_folder_itself(tmp_path: Path) -> None:
    folder_of(tmp_path / "10_miku girl", 1)
    assert entry(tmp_path / "10_miku girl", "0.png").repeats == 10


def test_imagefolder_jsonl_in_a_split_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", 2)
    rows = [{"file_name": "0.png", "text": "red dress"}, {"file_name": "1.png", "text": "blue dress"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert captions(tmp_path) == {"train/0.png": "red dress", "train/1.png": "blue dress"}


def test_imagefolder_csv_with_quotes_and_another_column_name(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    with (tmp_path / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file_name", "id", "prompt"], ["0.png", "7", 'says "hi", waves'], ["1.png", "8", "two\nlines"]])
    assert captions(tmp_path) == {"0.png": 'says "hi", waves', "1.png": "two, lines"}


def test_kohya_metadata_json_by_path_and_by_stem(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    data = {
        str(tmp_path / "0.png"): {"caption": "a girl", "tags": "blue hair, solo"},
        "1": {"tags": "smile"},
        "D:\\pictures\\2.png": {"caption": "a boy"},
    }
    (tmp_path / "meta_cap.json").write_text(json.dumps(data), encoding="utf-8")
    assert captions(tmp_path) == {"0.png": "a girl, blue hair, solo", "1.png": "smile", "2.png": "a boy"}


def test_caption_files_that_fit_no_picture_are_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / "picture1.txt").write_text("lost", encoding="utf-8")
    (tmp_path / "0.tags").write_text("unread", encoding="utf-8")
    warnings = " ".join(found(tmp_path).warnings)
    assert "1 caption file without an image of the same name, for example picture1.txt" in warnings
    assert "1 .tags files beside images were not read" in warnings


def test_damaged_metadata_is_reported_and_not_fatal(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"\n', encoding="utf-8")
    result = found(tmp_path)
    assert len(result.entries) == 1
    assert "metadata.jsonl cannot be read: line 1 is not JSON" in result.warnings[0]


def test_metadata_without_captions_is_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "width": 3, "height": 4}\n', encoding="utf-8")
    assert "a caption column (looked for text, caption" in found(tmp_path).warnings[0]


def test_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        found(tmp_path)


def test_folder_without_pictures_lists_what_is_there(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        found(tmp_path)
    assert "found 12 .heic files, 1 .txt file" in caught.value.message
    assert "PNG, JPEG, WebP" in caught.value.message
    assert "HEIC photos must be converted" in caught.value.hint


def test_unreadable_kinds_beside_pictures_are_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "a.heic").write_bytes(b"x")
    assert found(tmp_path).warnings == [
        "Not read: 1 .heic, for example a.heic. Save images as PNG or JPEG, videos as single frames, and unpack archives."
    ]


def test_names_of_an_image_batch_become_unique() -> None:
    images = [SourceImage(drawing(i), "frame", "a cat" if i else None) for i in range(3)]
    entries = from_images(images).entries
    assert [e.name for e in entries] == ["frame", "frame_2", "frame_3"]
    assert [e.caption for e in entries] == [None, "a cat", "a cat"]
    with pytest.raises(UserError, match="IMAGE batch is empty"):
        from_images([])


def names(root: Path, *inside: Path) -> list[str]:
    return [entry.name for entry in from_folder(root, CAPTIONS, inside=inside).entries]


def test_what_this_program_wrote_below_the_source_is_not_read(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    for trigger in ("one", "two"):
        result = prepare_dataset(source, source / "out", PrepareSettings(trigger=trigger, resolution=64))
        export_dataset(result.dataset, "kohya")
        export_dataset(result.dataset, "imagefolder")
    (source / "out" / "begun" / ".prepare").mkdir(parents=True)
    (source / "out" / "begun" / ".prepare" / "journal.jsonl").write_text("", encoding="utf-8")
    folder_of(source / "out" / "begun", 1, first=9)
    (source / "mine").mkdir()
    (source / "mine" / "manifest.json").write_text('{"schema": "another program"}', encoding="utf-8")
    drawing(8).save(source / "mine" / "8.png")
    assert names(source) == ["0.png", "1.png", "2.png", "mine/8.png"]
    (warning,) = [text for text in found(source).warnings if "AnimeLoRA wrote it" in text]
    assert "out/begun, out/one, out/one-imagefolder, out/one-kohya, out/two, …" in warning
    assert len(names(source / "out" / "one")) == 3, "a dataset may be the source itself"
    assert len(names(source / "out" / "one-kohya")) == 3
    with pytest.raises(UserError, match="apart from what AnimeLoRA wrote itself: begun"):
        found(source / "out")


def test_packed_dataset_can_be_a_source(tmp_path: Path) -> None:
    prepare_dataset(folder_of(tmp_path / "in", 3), tmp_path / "out", PrepareSettings(trigger="one", resolution=64))
    made = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "out"))
    assert prepare_dataset(made, tmp_path / "again", PrepareSettings(trigger="one", resolution=64)).kept == 3


def test_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 1)
    folder_of(tmp_path / "a" / "locked", 1, first=1)
    folder_of(tmp_path / "b", 1, first=2)
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = found(tmp_path)
    assert [entry.name for entry in result.entries] == ["0.png", "b/2.png"]
    assert result.rejected == [("a/locked", "unreadable", "the folder cannot be read: Permission denied")]
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        found(tmp_path / "a" / "locked")


def test_linked_folders_are_read_once_and_never_in_circles(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 1)
    folder_of(root / "z", 1, first=1)
    folder_of(tmp_path / "other" / "deep", 1, first=2)
    try:
        (root / "a link").symlink_to(root / "z", target_is_directory=True)
        (root / "more").symlink_to(tmp_path / "other", target_is_directory=True)
        (root / "more too").symlink_to(tmp_path / "other", target_is_directory=True)
        (root / "self").symlink_to(root, target_is_directory=True)
        (root / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "other" / "back").symlink_to(root, target_is_directory=True)
        (tmp_path / "other" / "deep" / "up").symlink_to(tmp_path / "other", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert names(root) == ["0.png", "more/deep/2.png", "z/1.png"]
    assert found(root).rejected == [("up", "unsafe path", "a link to a folder that contains it")]
    assert names(root, tmp_path / "other") == ["0.png", "more/deep/2.png", "z/1.png"]
    inside = from_folder(root, CAPTIONS, inside=[root])
    assert [entry.name for entry in inside.entries] == ["0.png", "z/1.png"]
    assert {(name, reason) for name, reason, _ in inside.rejected} == {(n, "unsafe path") for n in ("more", "more too", "up")}


def test_a_year_in_front_of_a_folders_name_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "2023_summer art", 2)
    folder_of(tmp_path / "200_girl", 1, first=5)
    result = found(tmp_path)
    assert [entry.repeats for entry in result.entries] == [200, 2023, 2023]
    (warning,) = result.warnings
    assert "The name of the folder 2023_summer art means 2023 repeats of each of its images" in warning
    assert "2023 repeats" in found(tmp_path / "2023_summer art").warnings[0]


def test_the_working_directory_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "10_miku girl" / "sub", 1)
    for folder, source in (("10_miku girl", "."), ("10_miku girl/sub", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert [(entry.repeats, entry.instance) for entry in found(Path(source)).entries] == [(10, "miku girl")]


def test_deep_folders_do_not_cost_the_square_of_their_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    for _ in range(300):
        folder /= "d"
    folder_of(folder, 1)
    asked = 0
    real = Path.resolve

    def counted(self: Path, strict: bool = False) -> Path:
        nonlocal asked
        asked += 1
        return real(self, strict)

    monkeypatch.setattr(Path, "resolve", counted)
    assert [entry.name for entry in from_folder(tmp_path / "in", CAPTIONS).entries] == ["d/" * 300 + "0.png"]
    assert asked < 20, "each looks at every folder above"
