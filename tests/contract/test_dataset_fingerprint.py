"""Fingerprints of prepared datasets change when the user changes the dataset, and not when it is prepared."""

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
def fingerprints(helper: Helper) -> Iterator[ModuleType]:
    module = helper("dataset_fingerprint")
    module._FOLDERS.clear()
    yield module
    module._FOLDERS.clear()


@pytest.fixture
def make(tmp_path: Path, fingerprints: ModuleType) -> Callable[[], Path]:
    """Prepare one image with a transparent half, as the node does."""
    (tmp_path / "source").mkdir()
    image = Image.linear_gradient("L").resize((96, 96)).convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize((96, 96)))
    image.save(tmp_path / "source" / "one.png")
    settings = parse_settings(
        {"trigger": "word", "class_description": "face", "resolution": 64, "alpha": "mask", "clean": {"min_side": 16}}
    )

    def run() -> Path:
        folder = prepare_dataset(tmp_path / "source", tmp_path / "out", settings).dataset.path
        fingerprints.record_dataset(folder)
        return folder

    return run


def test_preparing_keeps_the_fingerprint(fingerprints: ModuleType, make: Callable[[], Path], tmp_path: Path) -> None:
    folder = tmp_path / "out" / "word_face"
    before = fingerprints.dataset_fingerprint(folder)
    assert make() == folder
    assert fingerprints.dataset_fingerprint(folder) == before
    make()
    assert fingerprints.dataset_fingerprint(folder) == before


@pytest.mark.parametrize("pattern", ["*.txt", "masks/*.png"])
def test_edit_changes_the_fingerprint_once(fingerprints: ModuleType, make: Callable[[], Path], pattern: str) -> None:
    folder = make()
    before = fingerprints.dataset_fingerprint(folder)
    (edited,) = folder.glob(pattern)
    with edited.open("ab") as file:
        file.write(b" ")
    after = fingerprints.dataset_fingerprint(folder)
    assert after != before
    make()
    assert fingerprints.dataset_fingerprint(folder) == after, "prepared again without need"


def test_edit_of_the_same_length_changes_the_fingerprint(fingerprints: ModuleType, make: Callable[[], Path]) -> None:
    folder = make()
    before = fingerprints.dataset_fingerprint(folder)
    (edited,) = folder.glob("*.txt")
    status = edited.stat()
    edited.write_bytes(edited.read_bytes()[::-1])
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    assert fingerprints.dataset_fingerprint(folder) != before


def test_deletion_changes_the_fingerprint_and_preparing_again_keeps_it(fingerprints: ModuleType, make: Callable[[], Path]) -> None:
    folder = make()
    before = fingerprints.dataset_fingerprint(folder)
    shutil.rmtree(folder)
    gone = fingerprints.dataset_fingerprint(folder)
    assert gone != before
    make()
    assert fingerprints.dataset_fingerprint(folder) == gone
    shutil.rmtree(folder)
    assert fingerprints.dataset_fingerprint(folder) != gone, "deleted twice"


def test_fingerprint_without_a_name_covers_every_dataset(fingerprints: ModuleType, make: Callable[[], Path]) -> None:
    before = fingerprints.dataset_fingerprint(None)
    folder = make()
    assert fingerprints.dataset_fingerprint(None) == before
    (edited,) = folder.glob("*.txt")
    edited.write_text("by hand", encoding="utf-8")
    assert fingerprints.dataset_fingerprint(None) != before
