"""Captions in the files that downloaders, taggers and other trainers write beside images."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import listed_captions, listing
from trainer.dataset import CaptionSettings, PrepareSettings, prepare_dataset
from trainer.dataset.captions.booru import split_spaced
from trainer.dataset.reading.sources import from_folder


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
    assert listed_captions(tmp_path) == {"0.png": expected, "1.png": None}
    assert listing(tmp_path).warnings == []


def test_text_file_comes_before_json_and_underscores_may_stay(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    write(tmp_path / "0.txt", "by hand")
    for number in (0, 1):
        write(tmp_path / f"{number}.png.json", GALLERY_DL | {"tags": "long_hair solo"})
    assert listed_captions(tmp_path, underscores=True) == {"0.png": "by hand", "1.png": "long_hair, solo"}


def test_data_without_captions_is_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.json", {"width": 3})
    write(tmp_path / "info.json", {"gallery": "x"})
    write(tmp_path / "tags.csv", "tag_id,name\n1,solo\n")
    write(tmp_path / "0.xml", "<caption/>")
    write(tmp_path / "dataset.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 10\n")
    warnings = listing(tmp_path).warnings
    assert any("No captions were recognised in 4 data files, for example 0.json" in text for text in warnings)
    assert any(text.startswith("dataset.toml is a configuration of kohya's trainer and was not read") for text in warnings)
    write(tmp_path / "0.json", '{"tags": ')
    assert any(text.startswith("1 caption file cannot be read, for example 0.json (Expecting value") for text in listing(tmp_path).warnings)


def test_second_caption_file_of_an_image_is_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "one")
    write(tmp_path / "0.caption", "two")
    result = listing(tmp_path)
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
def test_space_separated_tags_are_recognised(text: str, tags: list[str] | None) -> None:
    assert split_spaced(text) == tags


def test_space_separated_tags_are_split_with_a_warning(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "1girl saber_(fate) blonde_hair")
    result = listing(tmp_path)
    assert result.entries[0].caption == "1girl, saber (fate), blonde hair"
    assert result.warnings == [
        '1 caption, for example of 0.txt: read as tags separated by spaces. If it is a sentence, set captions.separator = "comma".'
    ]
    assert listed_captions(tmp_path, separator="comma") == {"0.png": "1girl saber_(fate) blonde_hair"}
    write(tmp_path / "0.txt", "solo smile")
    assert listed_captions(tmp_path, separator="space") == {"0.png": "solo, smile"}


def test_lines_are_joined_with_a_warning_or_stay_apart(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    write(tmp_path / "0.txt", "a cat on a mat\r\n\r\na cat, sitting\n")
    result = listing(tmp_path)
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
        assert sorted(filter(None, listed_captions(folder).values())) == ["found", "found, too"]
        assert listing(folder).warnings == []


def test_caption_belongs_to_the_image_with_exactly_its_name(tmp_path: Path) -> None:
    names = ("x.png", "X.PNG")
    for number, image in enumerate(names):
        drawing(number).save(tmp_path / image)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    write(tmp_path / "x.txt", "lower")
    assert listed_captions(tmp_path) == {"x.png": "lower", "X.PNG": None}
    write(tmp_path / "X.TXT", "upper")
    assert listed_captions(tmp_path) == {"x.png": "lower", "X.PNG": "upper"}
    (tmp_path / "x.png").unlink()
    (tmp_path / "X.TXT").unlink()
    assert listed_captions(tmp_path) == {"X.PNG": "lower"}, "as on Windows"


def test_archive_has_every_kind_of_caption(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", 3)
    write(folder / ".0_meta.json", {"tags": {"waifuc": 1.0}})
    write(folder / "1.png.json", ["hydrus"])
    write(folder / "2.mine", "own ending")
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    settings = PrepareSettings(trigger="tok", resolution=64, captions=CaptionSettings(extensions=(".mine",)))
    made = prepare_dataset(tmp_path / "packed.zip", tmp_path / "out", settings).dataset
    assert sorted(item.caption for item in made.items) == ["tok, hydrus", "tok, own ending", "tok, waifuc"]
