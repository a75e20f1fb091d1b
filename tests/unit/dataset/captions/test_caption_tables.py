"""Captions in tables: metadata.jsonl, CSV and kohya's JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.drawings import folder_of
from tests.unit.dataset.helpers import listed_captions, listing


def write(path: Path, data: Any) -> None:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


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
def test_tables_of_captions_are_read(tmp_path: Path, name: str, data: Any) -> None:
    folder_of(tmp_path, 2)
    write(tmp_path / name, data)
    assert listed_captions(tmp_path) == {"0.png": "a cat", "1.png": "a dog"}
    assert listing(tmp_path).warnings == []


def test_imagefolder_jsonl_in_a_split_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", 2)
    rows = [{"file_name": "0.png", "text": "red dress"}, {"file_name": "1.png", "text": "blue dress"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert listed_captions(tmp_path) == {"train/0.png": "red dress", "train/1.png": "blue dress"}


def test_imagefolder_csv_with_quotes_and_another_column_name(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    with (tmp_path / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file_name", "id", "prompt"], ["0.png", "7", 'says "hi", waves'], ["1.png", "8", "two\nlines"]])
    assert listed_captions(tmp_path) == {"0.png": 'says "hi", waves', "1.png": "two, lines"}


def test_kohya_metadata_json_by_path_and_by_stem(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    data = {
        str(tmp_path / "0.png"): {"caption": "a girl", "tags": "blue hair, solo"},
        "1": {"tags": "smile"},
        "D:\\pictures\\2.png": {"caption": "a boy"},
    }
    (tmp_path / "meta_cap.json").write_text(json.dumps(data), encoding="utf-8")
    assert listed_captions(tmp_path) == {"0.png": "a girl, blue hair, solo", "1.png": "smile", "2.png": "a boy"}


def test_damaged_metadata_is_reported_and_not_fatal(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"\n', encoding="utf-8")
    result = listing(tmp_path)
    assert len(result.entries) == 1
    assert "metadata.jsonl cannot be read: line 1 is not JSON" in result.warnings[0]


@pytest.mark.parametrize("name", ["captions.json", "metadata.jsonl", "captions.csv"])
def test_oversized_table_of_captions_is_not_read(tmp_path: Path, name: str) -> None:
    """JSON such as ``[[],[],[],…`` takes 25 times as much memory as its text, which compresses to a thousandth in an archive."""
    folder_of(tmp_path, 1)
    with (tmp_path / name).open("wb") as file:
        file.truncate((100 << 20) + 1)
    result = listing(tmp_path)
    assert len(result.entries) == 1
    assert f"{name} cannot be read: the file is 100 MB long, more than 100" in result.warnings[0]


def test_metadata_without_captions_is_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "width": 3, "height": 4}\n', encoding="utf-8")
    assert "a caption column (looked for text, caption" in listing(tmp_path).warnings[0]
