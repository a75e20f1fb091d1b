"""Opening a dataset: quick for many rows, careful with what others wrote."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tools import hostile
from tests.unit.dataset.drawings import folder_of
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, TrainingHints, open_dataset, prepare_dataset
from trainer.dataset.manifest.hashing import dataset_hash, hashed_header
from trainer.dataset.manifest.integrity import changed_images
from trainer.dataset.manifest.items import Item, Row
from trainer.dataset.manifest.manifest_schema import ManifestRow, parse_row
from trainer.dataset.manifest.write import write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder_of(tmp_path / "in", 3)
    return prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", resolution=64)).dataset.path


def test_moved_and_copied_datasets_open(folder: Path, tmp_path: Path) -> None:
    before = open_dataset(folder)
    shutil.copytree(folder, tmp_path / "copy of it")
    after = open_dataset(tmp_path / "copy of it")
    assert after.hash == before.hash and after.items == before.items and after.path != before.path


def test_other_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="is not a prepared dataset"):
        open_dataset(tmp_path / "in")
    (tmp_path / "in" / "manifest.json").write_text('{"schema": "chrome"}', encoding="utf-8")
    with pytest.raises(UserError, match="belongs to another program"):
        open_dataset(tmp_path / "in")
    header = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**header, "version": 99}), encoding="utf-8")
    with pytest.raises(UserError, match="version 99"):
        open_dataset(folder)
    (folder / "manifest.json").write_text(json.dumps(header)[:-5], encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(folder)


def test_incomplete_manifest_is_refused(folder: Path) -> None:
    data = (folder / "manifest.jsonl").read_bytes()
    (folder / "manifest.jsonl").write_bytes(data[:-20])
    with pytest.raises(UserError, match="writing it was interrupted"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "C:\\x.png", "a\\..\\b.png", 7, None])
def test_manifest_cannot_point_outside(folder: Path, name: object) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    hostile.manifest(folder, [{**rows[0], "file": name}, *rows[1:]])
    with pytest.raises(UserError, match="damaged"):
        open_dataset(folder)


def test_row_without_a_field_is_a_user_error(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    del rows[0]["sha256"]
    hostile.manifest(folder, rows)
    with pytest.raises(UserError, match="sha256"):
        open_dataset(folder)


BAD_FIELDS: dict[str, list[Any]] = {
    "weight": ["x", -1, None, 1e9, True], "repeats": [0, -3, 1.5, "2", None, 10**12], "sha256": [["a"], "short", 7, None, "../" * 20],
    "width": [0, "64", None, 10**9], "height": [-1, [64]], "original_size": [[1], "ab", [1, 2, 3], None, {"0": 1}],
    "crop_top_left": [[-1, 0], [0], None], "caption": [None, 5, ["a"]], "is_regularisation": ["yes", 1, None],
    "mask": [7, "../m.png", ""], "crop_right": ["x", -1], "steps": ["crop", [1]], "source": [None, 4], "bytes": [-1, "many"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_FIELDS.items() for value in values])
def test_fields_of_the_wrong_type_are_reported_with_their_line(folder: Path, key: str, value: object) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    hostile.manifest(folder, [rows[0], {**rows[1], key: value}, *rows[2:]])
    with pytest.raises(UserError, match=f"damaged: line 2, {key}"):
        open_dataset(folder)
    # and preparing again is the way out, as the message says
    prepare_dataset(folder.parent / "in", folder.parent, PrepareSettings(trigger="mk01", resolution=64))
    assert len(open_dataset(folder).items) == 3


@pytest.mark.parametrize(("key", "value"), [
    ("trigger", None), ("class", 3), ("resolution", "64"), ("resolution", 0), ("training", []), ("training", {"flip": "perhaps"}),
    ("rows_sha256", ["a"]), ("name", {}), ("settings", [1]),
])  # fmt: skip
def test_header_fields_of_the_wrong_type_are_reported(folder: Path, key: str, value: object) -> None:
    header = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**header, key: value}), encoding="utf-8")
    with pytest.raises(UserError, match=f"damaged: {key}"):
        open_dataset(folder)


def test_lone_surrogate_in_a_manifest_is_a_user_error(folder: Path) -> None:
    data = (folder / "manifest.jsonl").read_bytes().replace(b'"caption": "mk01', b'"caption": "\\ud800', 1)
    rewritten = [json.loads(line) for line in data.splitlines()]
    hostile.manifest(folder, rewritten)
    with pytest.raises(UserError, match="damaged"):
        open_dataset(folder)


def test_row_schema_has_every_field() -> None:
    item = Item(file="a.png", sha256="0" * 64, caption="a", width=64, height=64, original_size=(1, 2), crop_top_left=(0, 0))
    written = Row(item).to_json()
    assert set(ManifestRow.model_fields) == set(written)
    assert parse_row(json.dumps(written)).model_dump() == written


OWN = ("verified.jsonl", "preparation.json", "pairs.json")  # files of .prepare that are read whole


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="NOT CHECKED: no pipes on this system")
@pytest.mark.parametrize("suffix", ["png", "txt", "manifest.json", "manifest.jsonl", "journal", "captions.jsonl", *OWN, "a folder"])
def test_pipe_in_place_of_a_file_is_refused_without_waiting(folder: Path, suffix: str) -> None:
    """A test that fails here hangs until its timeout."""
    places = {
        "manifest.json": folder / "manifest.json", "manifest.jsonl": folder / "manifest.jsonl",
        "journal": folder / ".prepare" / "journal.jsonl",
        **{name: folder / ".prepare" / name for name in ("captions.jsonl", *OWN)},
    }  # fmt: skip
    path = places.get(suffix) or next(iter(folder.glob("0-*.txt" if suffix == "a folder" else f"0-*.{suffix}")))
    path.unlink(missing_ok=True)
    if suffix == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    if ".prepare" not in str(path):
        with pytest.raises(UserError, match="device, a pipe or a folder"):
            open_dataset(folder)
    else:
        dataset = open_dataset(folder)
        assert len(dataset.items) == 3 and changed_images(dataset) == []
    try:
        prepare_dataset(folder.parent / "in", folder.parent, PrepareSettings(trigger="mk01", resolution=64))
    except UserError as error:
        assert "cannot be read" in str(error) or "cannot be written" in str(error)


def test_link_to_a_device_is_not_read_as_a_caption(folder: Path) -> None:
    if os.name == "nt" or not os.path.exists("/dev/zero"):
        pytest.skip("NOT CHECKED: no devices on this system")
    path = next(folder.glob("0-*.txt"))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="device, a pipe or a folder"):
        open_dataset(folder)


@pytest.mark.seconds
def test_ten_thousand_rows_open(tmp_path: Path) -> None:
    """The benchmark does 100,000 and takes the time; here the result is compared with what was written."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = []
    for i in range(10_000):
        item = Item(
            file=f"{i}-0123456789.png", sha256=f"{i:064x}", caption=f"mk01, tag {i}", width=64, height=64, original_size=(100, 100),
            crop_top_left=(0, 0),
        )  # fmt: skip
        (folder / item.file).touch()
        (folder / f"{i}-0123456789.txt").write_text(item.caption, encoding="utf-8")
        rows.append(Row(item))
    training = TrainingHints()
    header = hashed_header("mk01", "", 64, training)
    write_manifest(folder, {"name": "many", "settings": {}, **header}, rows)
    dataset = open_dataset(folder)
    assert list(dataset.items) == [row.item for row in rows]
    assert dataset.hash == dataset_hash(((row.item, "") for row in rows), header)


def test_hints_at_their_defaults_do_not_change_the_hash(tmp_path: Path) -> None:
    made = prepare_dataset(folder_of(tmp_path / "in", 1), tmp_path / "out", PrepareSettings(trigger="tok", resolution=64)).dataset
    header = json.loads((made.path / "manifest.json").read_bytes())
    assert header["training"] == {
        "shuffle_caption": False, "keep_tokens": 1, "caption_dropout": 0.0, "tag_dropout": 0.0, "flip": False
    }  # fmt: skip
