"""A prepared dataset's mark: it changes when somebody else changes the dataset, and not by preparing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from trainer.dataset import parse_settings, prepare_dataset

Helper = Callable[[str], ModuleType]


@pytest.fixture
def prepared(helper: Helper) -> Iterator[ModuleType]:
    module = helper("prepared")
    module._SEEN.clear()
    yield module
    module._SEEN.clear()


@pytest.fixture
def make(tmp_path: Path, prepared: ModuleType) -> Callable[[], Path]:
    """Prepare one picture with a transparent half, as the node does."""
    (tmp_path / "source").mkdir()
    picture = Image.linear_gradient("L").resize((96, 96)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((96, 96)))
    picture.save(tmp_path / "source" / "one.png")
    settings = parse_settings(
        {"trigger": "word", "class_description": "face", "resolution": 64, "alpha": "mask", "clean": {"min_side": 16}}
    )

    def run() -> Path:
        folder = prepare_dataset(tmp_path / "source", tmp_path / "out", settings).dataset.path
        prepared.remember(folder)
        return folder

    return run


def test_preparing_leaves_the_mark_as_it_was(prepared: ModuleType, make: Callable[[], Path], tmp_path: Path) -> None:
    folder = tmp_path / "out" / "word_face"
    before = prepared.mark(folder)
    assert make() == folder
    assert prepared.mark(folder) == before
    make()
    assert prepared.mark(folder) == before


@pytest.mark.parametrize("pattern", ["*.txt", "masks/*.png"])
def test_an_edit_changes_the_mark_once(prepared: ModuleType, make: Callable[[], Path], pattern: str) -> None:
    folder = make()
    before = prepared.mark(folder)
    (edited,) = folder.glob(pattern)
    with edited.open("ab") as file:
        file.write(b" ")
    after = prepared.mark(folder)
    assert after != before
    make()
    assert prepared.mark(folder) == after, "prepared again for nothing"


def test_an_edit_of_the_same_length_counts(prepared: ModuleType, make: Callable[[], Path]) -> None:
    folder = make()
    before = prepared.mark(folder)
    (edited,) = folder.glob("*.txt")
    status = edited.stat()
    edited.write_bytes(edited.read_bytes()[::-1])
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    assert prepared.mark(folder) != before


def test_a_deleted_dataset_changes_the_mark_and_what_is_made_again_keeps_it(prepared: ModuleType, make: Callable[[], Path]) -> None:
    folder = make()
    before = prepared.mark(folder)
    shutil.rmtree(folder)
    gone = prepared.mark(folder)
    assert gone != before
    make()
    assert prepared.mark(folder) == gone
    shutil.rmtree(folder)
    assert prepared.mark(folder) != gone, "deleted twice"


def test_a_name_that_another_node_gives_stands_for_every_dataset(prepared: ModuleType, make: Callable[[], Path]) -> None:
    before = prepared.mark(None)
    folder = make()
    assert prepared.mark(None) == before
    (edited,) = folder.glob("*.txt")
    edited.write_text("by hand", encoding="utf-8")
    assert prepared.mark(None) != before
