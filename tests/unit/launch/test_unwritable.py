"""Folders that cannot be written to: the message names the folder, and finished work is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.training_helpers import configuration, make_pictures
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run

SETTINGS: dict[str, object] = {"training.max_steps": 1}


@dataclass
class Locks:
    """Folders that can be made read-only, even for root: then they are file systems that are mounted read-only."""

    mounted: list[Path] = field(default_factory=list)

    def make(self, folder: Path) -> Path:
        """A folder that ``close`` can make read-only."""
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"NOT CHECKED: root can write anywhere, and nothing can be mounted here ({done.stderr.strip()})")
            self.mounted.append(folder)
        return folder

    def close(self, folder: Path) -> None:
        """Make the folder read-only."""
        if folder in self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        else:
            folder.chmod(0o555)

    def open(self, folder: Path) -> None:
        """Make the folder writable again."""
        if folder in self.mounted:
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        else:
            folder.chmod(0o755)


@pytest.fixture
def locks() -> Iterator[Locks]:
    if not sys.platform.startswith("linux"):
        pytest.skip("NOT CHECKED: folders are locked as Linux does it")
    made = Locks()
    yield made
    for folder in made.mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_an_unwritable_runs_folder_is_reported_before_a_child_starts(
    locks: Locks, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    runs = locks.make(tmp_path / "runs")
    locks.close(runs)
    with pytest.raises(UserError) as caught:
        run = prepare_run(configuration(shallow_checkpoint, dataset_folder, runs, SETTINGS))
        launcher.train(run, before_start=lambda: pytest.fail("a child"))
    assert caught.value.kind == "permission"
    assert str(runs) in caught.value.message
    assert "writable" in caught.value.hint
    assert not list(runs.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_an_unwritable_lora_folder_leaves_the_lora_in_the_run_folder(
    locks: Locks, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    loras = locks.make(tmp_path / "loras")
    (loras / "style.safetensors").write_bytes(b"an earlier LoRA")
    locks.close(loras)
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", {**SETTINGS, "output.publish": str(loras)})
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config))
    run = prepare_run(config).folder
    assert caught.value.kind == "permission"
    assert str(loras) in caught.value.message
    assert f"intact in {run.lora}" in caught.value.hint
    assert run.finished() is not None
    assert [path.read_bytes() for path in loras.iterdir()] == [b"an earlier LoRA"]
    locks.open(loras)
    again = launcher.train(prepare_run(config))
    assert again.reused
    assert again.lora.read_bytes() == run.lora.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_a_folder_that_becomes_unwritable_ends_the_run_and_is_named(
    locks: Locks, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    cache = locks.make(tmp_path / "runs" / "_cache")
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", SETTINGS)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), before_start=lambda: locks.close(cache))
    assert caught.value.kind == "permission"
    assert str(cache) in caught.value.message
    locks.open(cache)
    assert not launcher.train(prepare_run(config)).reused


def test_commands_name_the_folder_that_they_cannot_write_to(
    locks: Locks, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from tests.unit.lorafile.helpers import lora_tensors, small_layers

    save_file(lora_tensors(small_layers()), tmp_path / "lora.safetensors")
    pictures = make_pictures(tmp_path / "pictures", 1)
    locked = locks.make(tmp_path / "locked")
    prepared = ["prepare", str(pictures), "--out", str(locked), "--trigger", "x", "--resolution", "64"]
    assert main(prepared) == 0
    capsys.readouterr()
    shutil.copyfile(pictures / "00.png", pictures / "01.png")
    before = {path: path.stat().st_mtime_ns for path in locked.rglob("*")}
    locks.close(locked)
    for command in (
        prepared,
        [*prepared[:-3], "another", "--resolution", "64"],
        ["export", str(tmp_path / "lora.safetensors"), str(locked / "out.safetensors")],
    ):
        assert main(command) == 1, command
        output = capsys.readouterr().err
        assert output.startswith("error: ")
        assert str(locked) in output
    assert {path: path.stat().st_mtime_ns for path in locked.rglob("*")} == before
