"""Captions in the files that downloaders, taggers and other trainers write beside images."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.pictures import drawing, folder_of
from trainer.dataset import CaptionSettings, PrepareSettings, TrainingHints, open_dataset, prepare_dataset
from trainer.dataset.captions.booru import split_spaced
from trainer.dataset.reading.sources import SourceListing, from_folder


def found(root: Path, **settings: Any) -> SourceListing:
    return from_folder(root, CaptionSettings(**settings))


def captions(root: Path, **settings: Any) -> dict[str, str | None]:
    return {entry.name: entry.caption for entry in found(root, **settings).entries}


def write(path: Path, data: Any) -> None:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


GALLERY_DL = {"category": "danbooru", "subcategory": "tag", "description": "my comment"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        # gallery-dl, Danbooru: one text, and the same in groups; meta tags say nothing about the image
        (
            "0.png.json",
            GALLERY_DL
            | {
                "tag_string": "1girl artoria_pendragon_(fate) blonde_hair fate_(series) highres",
                "tag_string_general": "1girl blonde_hair",
                "tag_string_character": "artoria_pendragon_(fate)",
                "tag_string_copyright": "fate_(series)",
                "tag_string_meta": "highres",
            },
            "artoria pendragon (fate), fate (series), 1girl, blonde hair",
        ),
        # gallery-dl, without groups
        ("0.json", GALLERY_DL | {"tags": "1girl ^_^ long_hair"}, "1girl, ^_^, long hair"),
        # gallery-dl, e621
        (
            "0.png.json",
            GALLERY_DL | {"tags": {"general": ["smile", "blue_eyes"], "species": ["fox"], "character": [], "meta": ["hi_res"]}},
            "fox, smile, blue eyes",
        ),
        # gallery-dl, Pixiv: a list
        ("0.png.json", GALLERY_DL | {"tags": ["オリジナル", "女の子"], "caption": "<br>buy my book"}, "オリジナル, 女の子"),
        # waifuc
        (".0_meta.json", {"tags": {"1girl": 0.99, "long_hair": 0.8}, "filename": "0.png"}, "1girl, long hair"),
        # Hydrus: a list, with namespaces
        ("0.png.json", ["blue eyes", "character:saber (fate)", "rating:safe", "re:zero"], "blue eyes, saber (fate), re:zero"),
        # kohya's and others' file for one image
        ("0.json", {"caption": "a girl", "tags": "blue hair, solo"}, "a girl, blue hair, solo"),
    ],
)
def test_json_of_one_image(tmp_path: Path, name: str, data: Any, expected: str) -> None:
    folder_of(tmp_path, 2)
    write(tmp_path / name, data)
    assert captions(tmp_path) == {"0.png": expected, "1.png": None}
    assert found(tmp_path).warnings == []


def test_a_text_file_wins_over_json_and_underscores_may_stay(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    write(tmp_path / "0.txt", "by hand")
    for number in (0, 1):
        write(tmp_path / f"{number}.png.json", GALLERY_DL | {"tags": "long_hair solo"})
    assert captions(tmp_path, underscores=True) == {"0.png": "by hand", "1.png": "long_hair, solo"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("captions.json", {"0.png": "a cat", "1.png": "a dog"}),
        ("captions.json", [{"file_name": "0.png", "caption": "a cat"}, {"file_name": "1.png", "caption": "a dog"}]),
        ("metadata.json", {"images": [{"image": "0.png", "text": "a cat"}, {"image": "1.png", "text": "a dog"}]}),
        ("metadata.json", {"0": {"caption": "a cat"}, "1": {"caption": "a dog"}}),
        ("captions.jsonl", '{"image": "0.png", "caption": "a cat"}\n{"image": "1.png", "caption": "a dog"}'),
        ("labels.csv", "filename,caption\n0.png,a cat\n1.png,a dog\n"),
    ],
)
def test_tables_of_captions(tmp_path: Path, name: str, data: Any) -> None:
    folder_of(tmp_path, 2)
    write(tmp_path / name, data)
    assert captions(tmp_path) == {"0.png": "a cat", "1.png": "a dog"}
    assert found(tmp_path).warnings == []


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.json", {"width": 3})
    write(tmp_path / "info.json", {"gallery": "x"})
    write(tmp_path / "tags.csv", "tag_id,name\n1,solo\n")
    write(tmp_path / "0.xml", "<caption/>")
    write(tmp_path / "dataset.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 10\n")
    warnings = found(tmp_path).warnings
    assert any("No captions were recognised in 4 data files, for example 0.json" in text for text in warnings)
    assert any(text.startswith("dataset.toml is a configuration of kohya's trainer and was not read") for text in warnings)
    write(tmp_path / "0.json", '{"tags": ')
    assert any(text.startswith("1 caption file cannot be read, for example 0.json (Expecting value") for text in found(tmp_path).warnings)


def test_second_caption_file_of_an_image_is_named_as_such(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "one")
    write(tmp_path / "0.caption", "two")
    result = found(tmp_path)
    assert result.entries[0].caption == "one"
    assert result.warnings == ["1 caption file was not read, because the image has another one, for example 0.caption."]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("1girl saber_(fate) blonde_hair", ["1girl", "saber_(fate)", "blonde_hair"]),
        ("long_hair blue_eyes", ["long_hair", "blue_eyes"]),
        ("1girl, long_hair blue_eyes", None),
        ("a photo of my_style girl with blue_eyes and red_hair", None),
        ("my_style girl standing outside", None),
        ("saber_(fate)", None),
    ],
)
def test_tags_with_spaces_between_them(text: str, tags: list[str] | None) -> None:
    assert split_spaced(text) == tags


def test_space_separated_tags_are_read_and_named(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "1girl saber_(fate) blonde_hair")
    result = found(tmp_path)
    assert result.entries[0].caption == "1girl, saber (fate), blonde hair"
    assert result.warnings == [
        '1 caption, for example of 0.txt: read as tags separated by spaces. If it is a sentence, set captions.separator = "comma".'
    ]
    assert captions(tmp_path, separator="comma") == {"0.png": "1girl saber_(fate) blonde_hair"}
    write(tmp_path / "0.txt", "solo smile")
    assert captions(tmp_path, separator="space") == {"0.png": "solo, smile"}


def test_lines_are_joined_and_named_or_stay_apart(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "a cat on a mat\r\n\r\na cat, sitting\n")
    result = found(tmp_path)
    assert result.entries[0].caption == "a cat on a mat, a cat, sitting"
    assert "its lines were joined with commas" in result.warnings[0] and "training.wildcards" in result.warnings[0]
    assert from_folder(tmp_path, CaptionSettings(), lines=True).entries[0].caption == "a cat on a mat\na cat, sitting"


def test_names_with_decomposed_accents_find_their_captions(tmp_path: Path) -> None:
    name = "ガール é"
    forms = (unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    for number, (image, text) in enumerate((forms, forms[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        drawing(number).save(folder / f"{image}.png")
        write(folder / f"{text}.txt", "found")
        drawing(number + 2).save(folder / f"{image} 2.png")
        write(folder / "metadata.jsonl", json.dumps({"file_name": f"{text} 2.png", "text": "found, too"}))
        assert sorted(filter(None, captions(folder).values())) == ["found", "found, too"]
        assert found(folder).warnings == []


def test_a_caption_goes_to_the_image_of_exactly_its_name(tmp_path: Path) -> None:
    names = ("x.png", "X.PNG")
    for number, image in enumerate(names):
        drawing(number).save(tmp_path / image)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    write(tmp_path / "x.txt", "lower")
    assert captions(tmp_path) == {"x.png": "lower", "X.PNG": None}
    write(tmp_path / "X.TXT", "upper")
    assert captions(tmp_path) == {"x.png": "lower", "X.PNG": "upper"}
    (tmp_path / "x.png").unlink()
    (tmp_path / "X.TXT").unlink()
    assert captions(tmp_path) == {"X.PNG": "lower"}, "as on Windows"


def test_names_of_kohyas_folders_win_over_the_class(tmp_path: Path) -> None:
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


def test_a_set_without_any_caption_is_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    settings = PrepareSettings(trigger="tok", class_description="girl", resolution=64)
    warnings = prepare_dataset(source, tmp_path / "out", settings).report.warnings
    assert any(text.startswith("No image has a caption: all 3 got the instance prompt 'tok girl'.") for text in warnings)


def test_removal_rules_without_a_match_are_in_the_report(tmp_path: Path) -> None:
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
def test_a_caption_edited_in_the_dataset_is_read_as_one_in_a_source_folder(tmp_path: Path, data: bytes) -> None:
    source = folder_of(tmp_path / "in", 1)
    settings = PrepareSettings(trigger="tok", resolution=64)
    made = prepare_dataset(source, tmp_path / "out", settings).dataset
    text_file = made.path / made.items[0].file.replace(".png", ".txt")
    text_file.write_bytes(data)
    (source / "0.txt").write_bytes(data)
    wanted = captions(source)["0.png"]
    assert wanted is not None and "\ufffd" not in wanted
    opened = open_dataset(made.path)
    assert opened.items[0].caption == wanted
    told = [text for text in found(source).warnings if "is not UTF-8" in text]
    assert [text.replace(text_file.name, "0.txt") for text in opened.notes] == told
    again = prepare_dataset(source, tmp_path / "out", settings)
    assert again.dataset.hash == opened.hash and again.dataset.items[0].caption == wanted, "kept as it is"
    assert text_file.read_bytes() == data
    assert [text.replace(text_file.name, "0.txt") in again.report.warnings for text in opened.notes] == [True] * len(told)


def test_lines_edited_in_the_dataset_stay_apart_with_wildcards(tmp_path: Path) -> None:
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


def test_new_hints_at_their_defaults_leave_a_datasets_hash(tmp_path: Path) -> None:
    made = prepare_dataset(folder_of(tmp_path / "in", 1), tmp_path / "out", PrepareSettings(trigger="tok", resolution=64)).dataset
    header = json.loads((made.path / "manifest.json").read_bytes())
    assert header["training"] == {
        "shuffle_caption": False, "keep_tokens": 1, "caption_dropout": 0.0, "tag_dropout": 0.0, "flip": False
    }  # fmt: skip


def test_an_archive_brings_every_kind_of_caption(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", 3)
    write(folder / ".0_meta.json", {"tags": {"waifuc": 1.0}})
    write(folder / "1.png.json", ["hydrus"])
    write(folder / "2.mine", "own ending")
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    settings = PrepareSettings(trigger="tok", resolution=64, captions=CaptionSettings(extensions=(".mine",)))
    made = prepare_dataset(tmp_path / "packed.zip", tmp_path / "out", settings).dataset
    assert sorted(item.caption for item in made.items) == ["tok, hydrus", "tok, own ending", "tok, waifuc"]
