"""Images and captions in folders, as people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import WITHOUT_CLASS, listed_captions, listed_entry, listing, prepare_beside
from tests.unit.training_helpers import make_pictures
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.dataset.reading.sources import SourceImage, from_images, natural_key


def test_nested_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "b/1.png", "a/x/y/7.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        drawing(1).save(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    drawing(1).save(tmp_path / ".hidden" / "no.png")
    (tmp_path / "__MACOSX").mkdir()
    drawing(1).save(tmp_path / "__MACOSX" / "._2.png")
    assert [e.name for e in listing(tmp_path).entries] == ["2.png", "10.png", "a/x/y/7.png", "b/1.png"]


def test_natural_order_is_total_for_mixed_names() -> None:
    names = ["a10", "a2", "10a", "²x", "a", "A2b", "", "٣"]
    assert sorted(names, key=natural_key)[1] == "10a"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_sidecar_caption(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / f"0{suffix}").write_text("1girl, blue hair\n", encoding="utf-8")
    assert listed_captions(tmp_path) == {"0.png": "1girl, blue hair", "1.png": None}


def test_sidecar_named_after_the_whole_file_name(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "0.png.txt").write_text("solo", encoding="utf-8")
    assert listed_captions(tmp_path) == {"0.png": "solo"}


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
    assert listed_captions(tmp_path) == {"0.png": expected}


def test_kohya_folders_give_repeats_and_instance(tmp_path: Path) -> None:
    folder_of(tmp_path / "img" / "10_miku girl", 1)
    folder_of(tmp_path / "img" / "3_rin", 1, first=1)
    folder_of(tmp_path / "reg" / "1_girl", 1, first=2)
    rows = {e.name: (e.repeats, e.instance, e.is_regularisation) for e in listing(tmp_path).entries}
    assert rows == {
        "img/10_miku girl/0.png": (10, "miku girl", False),
        "img/3_rin/1.png": (3, "rin", False),
        "reg/1_girl/2.png": (1, "girl", True),
    }


def test_source_may_be_a_kohya_folder_itself(tmp_path: Path) -> None:
    folder_of(tmp_path / "10_miku girl", 1)
    assert listed_entry(tmp_path / "10_miku girl", "0.png").repeats == 10


def test_caption_files_without_an_image_are_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / "picture1.txt").write_text("lost", encoding="utf-8")
    (tmp_path / "0.tags").write_text("unread", encoding="utf-8")
    warnings = " ".join(listing(tmp_path).warnings)
    assert "1 caption file without an image of the same name, for example picture1.txt" in warnings
    assert "1 .tags files beside images were not read" in warnings


def test_empty_folder_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        listing(tmp_path)


def test_folder_without_images_is_an_error_that_lists_its_files(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        listing(tmp_path)
    assert "found 12 .heic files, 1 .txt file" in caught.value.message
    assert "PNG, JPEG, WebP" in caught.value.message
    assert "HEIC photos must be converted" in caught.value.hint


def test_unread_kinds_of_files_are_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "a.heic").write_bytes(b"x")
    assert listing(tmp_path).warnings == [
        "Not read: 1 .heic, for example a.heic. Save images as PNG or JPEG, videos as single frames, and unpack archives."
    ]


def test_names_of_an_image_batch_become_unique() -> None:
    images = [SourceImage(drawing(i), "frame", "a cat" if i else None) for i in range(3)]
    entries = from_images(images).entries
    assert [e.name for e in entries] == ["frame", "frame_2", "frame_3"]
    assert [e.caption for e in entries] == [None, "a cat", "a cat"]
    with pytest.raises(UserError, match="IMAGE batch is empty"):
        from_images([])


def test_year_in_front_of_a_folder_name_is_reported(tmp_path: Path) -> None:
    folder_of(tmp_path / "2023_summer art", 2)
    folder_of(tmp_path / "200_girl", 1, first=5)
    result = listing(tmp_path)
    assert [entry.repeats for entry in result.entries] == [200, 2023, 2023]
    (warning,) = result.warnings
    assert "The name of the folder 2023_summer art means 2023 repeats of each of its images" in warning
    assert "2023 repeats" in listing(tmp_path / "2023_summer art").warnings[0]


def test_working_directory_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "10_miku girl" / "sub", 1)
    for folder, source in (("10_miku girl", "."), ("10_miku girl/sub", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert [(entry.repeats, entry.instance) for entry in listing(Path(source)).entries] == [(10, "miku girl")]


def test_folder_with_zero_repeats_is_left_out_with_a_warning(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in" / "2_me girl", 2)
    make_pictures(tmp_path / "in" / "0_rest", 3, seed=1)
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="me", resolution=64))
    assert [item.repeats for item in result.dataset.items] == [2, 2]
    assert any("0_rest with 3 images is left out" in warning for warning in result.report.warnings)
    with pytest.raises(UserError, match="0_rest with 1 image is left out"):
        make_pictures(tmp_path / "only" / "0_rest", 1)
        prepare_dataset(tmp_path / "only", tmp_path / "out2", PrepareSettings(trigger="me", resolution=64))


def test_zero_repeats_of_the_source_itself_are_ignored(tmp_path: Path) -> None:
    result = prepare_dataset(make_pictures(tmp_path / "0_me", 2), tmp_path / "out", PrepareSettings(trigger="me", resolution=64))
    assert [item.repeats for item in result.dataset.items] == [1, 1]


def test_files_of_other_kinds_are_reported(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    for name in ("a.mov", "b.avi", "c.MOV", "scan", "d.jpg_large", "readme.md", "0.txt", "notes.json", "Thumbs.db", "LICENSE"):
        (source / name).write_bytes(b"x")
    unread = [text for text in prepare_beside(source).report.warnings if text.startswith("Not read")]
    assert len(unread) == 1
    assert all(part in unread[0] for part in ("2 .mov", "1 .avi", "1 .jpg_large", "1 without an extension", "for example a.mov"))
    assert not any(part in unread[0] for part in (".txt", ".json", ".db", "LICENSE", ".md"))
    for kind in ("zip", "tar"):
        made = Path(shutil.make_archive(str(tmp_path / "packed"), kind, source))
        warnings = prepare_dataset(made, tmp_path / kind, WITHOUT_CLASS).report.warnings
        assert [text for text in warnings if text.startswith("Not read: 2 .mov")]
