"""What a killed preparation wrote and the repeated one does not need is removed; what the user changed is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS, captions_by_source, changed
from trainer.dataset import Dataset, PrepareSettings, prepare_dataset

PREPARE = "trainer.dataset.preparation.prepare_dataset"
MASKED = changed(alpha="mask")


class Killed(BaseException):
    """In place of SIGKILL: what runs after it only closes files and unlocks."""


@contextmanager
def killed_at(function: str) -> Iterator[None]:
    """Whatever is done inside ends at the first call of ``function``."""

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(function, kill)
        yield


def prepare(source: Path, settings: PrepareSettings = SETTINGS) -> Dataset:
    return prepare_dataset(source, source.parent / "out", settings).dataset


def files(dataset: Dataset) -> set[str]:
    """The images, captions and masks in the dataset's folder."""
    found = (path.relative_to(dataset.path).as_posix() for path in dataset.path.rglob("*") if path.suffix in (".png", ".txt"))
    return {name for name in found if not name.startswith(".prepare/")}


def wanted(dataset: Dataset) -> set[str]:
    """Those of its manifest."""
    names = {name for item in dataset.items for name in (item.file, item.mask) if name}
    return names | {item.file.removesuffix(".png") + ".txt" for item in dataset.items}


def masked_source(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        image = drawing(number)
        image.putalpha(drawing(number + 90).convert("L"))
        image.save(folder / f"{number}.png")
    return folder


def test_files_of_a_renamed_source_are_removed_after_a_kill(tmp_path: Path) -> None:
    source = masked_source(tmp_path / "in")
    first = prepare(source, MASKED)
    (source / "1.png").rename(source / "9.png")
    with killed_at(f"{PREPARE}.stale_files"):
        prepare(source, MASKED)
    assert len(files(first)) == 12, "the manifest is written, and nothing of the earlier name is removed yet"
    repeated = prepare(source, MASKED)
    assert files(repeated) == wanted(repeated) and len(wanted(repeated)) == 9


def test_kill_loses_nothing_that_the_user_changed_beside_a_renamed_source(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    first = prepare(source)
    image = first.image_path(first.items[1])
    drawing(77).save(image)
    image.with_suffix(".txt").write_text("mk01, my own words", encoding="utf-8")
    (first.path / "mine-0123456789.png").write_bytes(image.read_bytes())
    edited = image.read_bytes()
    (source / "1.png").rename(source / "9.png")
    with killed_at(f"{PREPARE}.stale_files"):
        prepare(source)
    repeated = prepare(source)
    assert files(repeated) == wanted(repeated) | {"mine-0123456789.png"}
    assert captions_by_source(repeated)["9.png"] == "mk01, my own words"
    assert (repeated.path / ".prepare" / "kept-images" / image.name).read_bytes() == edited


def test_image_written_just_before_a_kill_is_removed_with_its_source(tmp_path: Path) -> None:
    source = masked_source(tmp_path / "in")
    with killed_at("trainer.dataset.manifest.integrity.IntegrityCheck.record"):  # follows the writing of an image
        prepare_dataset(source, tmp_path / "out", MASKED, workers=0)
    assert len(list((tmp_path / "out").rglob("0-*.png"))) == 2, "the image and its mask"
    (source / "0.png").unlink()
    repeated = prepare(source, MASKED)
    assert files(repeated) == wanted(repeated) and len(wanted(repeated)) == 6
