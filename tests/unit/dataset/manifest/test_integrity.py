"""An image of a prepared dataset that was changed is noticed by its content, whatever its size and time say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import WITHOUT_CLASS
from tests.unit.training_helpers import configuration
from trainer.cli import main
from trainer.config.sections.dataset import DatasetSection
from trainer.core.errors import UserError
from trainer.core.files.reading import file_stamp, read_regular, sha256_file
from trainer.core.files.sealed_json import read_sealed, write_sealed
from trainer.dataset import Dataset, open_dataset, prepare_dataset
from trainer.dataset.loading.open import open_datasets
from trainer.dataset.manifest.integrity import VERIFIED


def swap_last_byte(path: Path) -> None:
    """Other content of the same size with the same modification time, in the same file."""
    status, data = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def replace_with_as_old_a_file(path: Path) -> None:
    """Another file of the same size and time in its place, as ``cp -p`` and sync clients make them."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    swap_last_byte(other)
    other.replace(path)


CHANGES = [
    pytest.param(swap_last_byte, marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of change")),
    replace_with_as_old_a_file,
]


@pytest.fixture
def made(tmp_path: Path) -> Dataset:
    return prepare_dataset(folder_of(tmp_path / "in", 3), tmp_path / "out", WITHOUT_CLASS).dataset


def opened(dataset: Dataset) -> Dataset:
    return open_datasets(DatasetSection(path=str(dataset.path)))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_image_is_refused_by_training_and_made_again_by_preparing(made: Dataset, tmp_path: Path, change: object) -> None:
    assert opened(made).hash == made.hash
    victim = made.image_path(made.items[1])
    change(victim)  # type: ignore[operator]
    theirs = victim.read_bytes()
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            opened(made)
        assert victim.name in caught.value.message and "Dataset Prep again" in caught.value.hint
    again = prepare_dataset(tmp_path / "in", tmp_path / "out", WITHOUT_CLASS)
    assert again.reused == 2 and again.dataset.hash == made.hash == opened(made).hash
    assert sha256_file(victim) == made.items[1].sha256
    assert any(victim.name in text and "changed after preparing" in text for text in again.report.warnings)
    assert [path.read_bytes() for path in (made.path / ".prepare" / "kept-images").iterdir()] == [theirs]


def test_changed_image_whose_source_is_gone_is_kept(made: Dataset, tmp_path: Path) -> None:
    victim = made.image_path(made.items[1])
    Image.new("RGB", (64, 64), "red").save(victim)
    (tmp_path / "in" / "1.png").unlink()
    again = prepare_dataset(tmp_path / "in", tmp_path / "out", WITHOUT_CLASS)
    assert again.kept == 2 and not victim.exists()
    assert (made.path / ".prepare" / "kept-images" / victim.name).is_file()


def test_changed_source_of_the_same_size_and_time_is_prepared_again(tmp_path: Path) -> None:
    source = tmp_path / "in" / "a.bmp"
    source.parent.mkdir()
    drawing(1).save(source)
    first, status = prepare_dataset(source.parent, tmp_path / "out", WITHOUT_CLASS).dataset, source.stat()
    drawing(2).save(source)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    again = prepare_dataset(source.parent, tmp_path / "out", WITHOUT_CLASS).dataset
    assert again.path == first.path and again.items[0].sha256 != first.items[0].sha256


def test_images_are_read_only_once(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (made.path / ".prepare" / VERIFIED).unlink()
    opened(made)

    def read(path: Path, limit: int) -> bytes:
        assert path.name == VERIFIED, "read again"
        return read_regular(path, limit)

    monkeypatch.setattr("trainer.dataset.manifest.integrity.read_regular", read)
    opened(made)
    os.utime(made.image_path(made.items[0]))
    with pytest.raises(AssertionError, match="read again"):
        opened(made)


def test_copied_dataset_is_read_in_full_and_a_false_record_is_not_trusted(made: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(made.path, tmp_path / "copy")
    assert opened(open_dataset(copy)).hash == made.hash
    victim = copy / made.items[0].file
    Image.new("RGB", (64, 64), "red").save(victim)
    with pytest.raises(UserError, match="changed after it was prepared"):
        opened(open_dataset(copy))


def test_check_reads_everything(made: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(made.path)]) == 0
    assert "3 images as prepared" in capsys.readouterr().out
    victim = made.image_path(made.items[2])
    swap_last_byte(victim)
    record = made.path / ".prepare" / VERIFIED
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    for row in rows:  # as on a system that cannot tell the file from the one before
        row["stamp"] = file_stamp(made.path / row["file"])
    record.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert len(opened(made).items) == 3
    assert main(["check", str(made.path)]) == 1
    assert victim.name in capsys.readouterr().out
    with pytest.raises(UserError, match="changed after it was prepared"):
        opened(made)


def test_check_of_a_configuration_reads_its_checkpoint_too(
    made: Dataset, shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.safetensors"
    shutil.copyfile(shallow_checkpoint, base)
    config = configuration(base, made.path, tmp_path / "runs")
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    assert main(["check", str(tmp_path / "run.json")]) == 0
    assert f"unchanged ({sha256_file(base)[:16]})" in capsys.readouterr().out
    swap_last_byte(base)
    record = tmp_path / "runs" / "_cache" / "checkpoint-hashes.json"
    ((_, digest),) = read_sealed(record).items()
    write_sealed(record, {f"{base}|{file_stamp(base)}": digest})
    assert main(["check", str(tmp_path / "run.json")]) == 1
    assert "differs from what its stored hash says" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "run.json")]) == 0


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_the_same_size_and_time_is_another_base(shallow_checkpoint: Path, tmp_path: Path, change: object) -> None:
    from trainer.families import open_checkpoint

    base = tmp_path / "base.safetensors"
    shutil.copyfile(shallow_checkpoint, base)
    assert open_checkpoint(str(base)).identity(tmp_path) == sha256_file(shallow_checkpoint)
    change(base)  # type: ignore[operator]
    assert open_checkpoint(str(base)).identity(tmp_path) == sha256_file(base) != sha256_file(shallow_checkpoint)
