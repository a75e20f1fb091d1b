"""Which folders below a source are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import listing
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.dataset.export.export_dataset import export_dataset


def names(root: Path, *inside: Path) -> list[str]:
    return [entry.name for entry in listing(root, inside=inside).entries]


def test_own_datasets_and_exports_below_the_source_are_not_read(tmp_path: Path) -> None:
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
    (warning,) = [text for text in listing(source).warnings if "AnimeLoRA wrote it" in text]
    assert "out/begun, out/one, out/one-imagefolder, out/one-kohya, out/two, …" in warning
    assert len(names(source / "out" / "one")) == 3, "a dataset may be the source itself"
    assert len(names(source / "out" / "one-kohya")) == 3
    with pytest.raises(UserError, match="apart from what AnimeLoRA wrote itself: begun"):
        listing(source / "out")


def test_packed_dataset_can_be_a_source(tmp_path: Path) -> None:
    prepare_dataset(folder_of(tmp_path / "in", 3), tmp_path / "out", PrepareSettings(trigger="one", resolution=64))
    made = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "out"))
    assert prepare_dataset(made, tmp_path / "again", PrepareSettings(trigger="one", resolution=64)).kept == 3


def test_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 1)
    folder_of(tmp_path / "a" / "locked", 1, first=1)
    folder_of(tmp_path / "b", 1, first=2)
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = listing(tmp_path)
    assert [entry.name for entry in result.entries] == ["0.png", "b/2.png"]
    assert result.rejected == [("a/locked", "unreadable", "the folder cannot be read: Permission denied")]
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        listing(tmp_path / "a" / "locked")


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
    assert listing(root).rejected == [("up", "unsafe path", "a link to a folder that contains it")]
    assert names(root, tmp_path / "other") == ["0.png", "more/deep/2.png", "z/1.png"]
    inside = listing(root, inside=[root])
    assert [entry.name for entry in inside.entries] == ["0.png", "z/1.png"]
    assert {(name, reason) for name, reason, _ in inside.rejected} == {(n, "unsafe path") for n in ("more", "more too", "up")}


def test_deep_folders_are_read_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert [entry.name for entry in listing(tmp_path / "in").entries] == ["d/" * 300 + "0.png"]
    assert asked < 20, "each looks at every folder above"
