"""Deleting a run deletes its folder and nothing that lies elsewhere; a run in training stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tools.run_folders import make_run
from trainer.core.errors import UserError
from trainer.runs.deleting import Deleted, delete_run, delete_step, own_run, published_lora
from trainer.runs.publish import publish
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_list import RunList
from trainer.runs.states import saved_steps


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    return tmp_path / "loras"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_a_run_is_deleted_and_its_published_lora_stays(runs: Path, loras: Path) -> None:
    run, other = make_run(runs, "style", states=(4, 8)), make_run(runs, "other")
    published, before = publish(run, str(loras)), size(run.path)
    assert delete_run(run) == Deleted(states=2, images=6, bytes=before)
    assert [each.folder for each in RunList(runs).all()] == [other.path]
    assert not run.path.exists()
    assert published is not None
    assert published.is_file()


def test_the_published_lora_is_deleted_if_that_is_asked(runs: Path, loras: Path) -> None:
    (loras).mkdir()
    (loras / "style.safetensors").write_bytes(b"another LoRA of this name")
    run = make_run(runs, "style")
    publish(run, str(loras))
    before = size(run.path) + run.lora.stat().st_size
    assert delete_run(run, str(loras)) == Deleted(1, 6, before, loras / "style_2.safetensors")
    assert [path.name for path in loras.iterdir()] == ["style.safetensors"]


def test_the_lora_of_another_run_is_not_taken_for_the_published_one(runs: Path, loras: Path) -> None:
    run = make_run(runs, "style", ending="stopped")
    loras.mkdir()
    (loras / "style.safetensors").write_bytes(b"of another run")
    assert published_lora(run, str(loras)) is None
    delete_run(run, str(loras))
    assert (loras / "style.safetensors").is_file()


def test_a_link_among_the_loras_is_not_the_published_one(runs: Path, loras: Path, tmp_path: Path) -> None:
    run = make_run(runs, "style")
    loras.mkdir()
    shutil.copyfile(run.lora, tmp_path / "precious.safetensors")
    (loras / "style.safetensors").symlink_to(tmp_path / "precious.safetensors")
    assert delete_run(run, str(loras)).published is None
    assert (loras / "style.safetensors").is_symlink()
    assert (tmp_path / "precious.safetensors").is_file()


@pytest.mark.parametrize("lock", [".lock", ".child.lock"])
def test_a_run_in_training_is_refused(runs: Path, lock: str) -> None:
    run = make_run(runs, "style", ending="step")
    before = size(run.path)
    with FileLock(str(run.path / lock)):
        with pytest.raises(UserError, match="is being trained") as refused:
            delete_run(run)
        assert refused.value.kind == "busy"
        with pytest.raises(UserError, match="is being trained"):
            delete_step(run, 4)
    assert size(run.path) == before


def test_links_in_a_run_are_removed_and_their_targets_stay(runs: Path, tmp_path: Path) -> None:
    run, precious = make_run(runs, "style", states=()), tmp_path / "precious"
    (precious / "step-000004").mkdir(parents=True)
    (precious / "step-000004" / "state.pt").write_bytes(b"x")
    (precious / "image.png").write_bytes(b"x")
    before = size(run.path)
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(precious, target_is_directory=True)
    (run.samples / "epoch-009-00.png").symlink_to(precious / "image.png")
    with pytest.raises(UserError, match="Nothing is saved"):
        delete_step(run, 4)
    assert delete_run(run) == Deleted(0, 6, before)
    assert not run.path.exists()
    assert (precious / "step-000004" / "state.pt").is_file()
    assert (precious / "image.png").is_file()


def test_a_lock_that_is_a_link_is_refused(runs: Path, tmp_path: Path) -> None:
    run = make_run(runs, "style")
    (tmp_path / "precious").write_text("text", encoding="utf-8")
    run.parent_lock.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        delete_run(run)
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "text"
    assert run.result.is_file()


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/etc", "../runs/style-0123456789abcdef", "_cache", "no-such-run", "a\x00b", "link", "style"]
)
def test_only_runs_directly_below_the_folder_are_found(runs: Path, name: str) -> None:
    run = make_run(runs, "style")
    (runs / "_cache").mkdir()
    (runs / "link").symlink_to(run.path, target_is_directory=True)
    with pytest.raises(UserError, match="There is no run"):
        own_run(runs, name)
    assert own_run(runs, run.path.name) == run


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="NOT CHECKED: no named pipes here")
def test_a_folder_with_a_pipe_in_place_of_the_log_is_no_run(runs: Path) -> None:
    run = make_run(runs, "style")
    run.events.unlink()
    os.mkfifo(run.events)
    with pytest.raises(UserError, match="There is no run"):
        own_run(runs, run.path.name)


def test_a_damaged_run_can_be_deleted(runs: Path) -> None:
    run = make_run(runs, "style")
    run.config.write_text("[" * 10_000, encoding="utf-8")
    run.result.unlink()
    found = own_run(runs, run.path.name)
    assert found == RunFolder(run.path, "style")
    delete_run(found)
    assert not run.path.exists()


def test_a_deletion_that_failed_can_be_repeated(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(runs, "style")

    def rmtree(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(PermissionError):
            delete_run(run)
    assert run.finished() is None
    assert own_run(runs, run.path.name) == run
    delete_run(run)
    assert not run.path.exists()


def test_what_was_saved_at_one_step_is_deleted_and_the_rest_stays(runs: Path) -> None:
    run = make_run(runs, "style", states=(4, 8))
    freed = size(run.checkpoints / "step-000004")
    assert delete_step(run, 4) == Deleted(1, 0, freed)
    assert saved_steps(run.checkpoints) == [8]
    assert run.finished() is not None
    assert len(list(run.samples.iterdir())) == 6
    with pytest.raises(UserError, match="Nothing is saved at step 4"):
        delete_step(run, 4)


def test_a_linked_state_is_not_deleted_through(runs: Path, tmp_path: Path) -> None:
    run = make_run(runs, "style", states=(4,))
    (run.checkpoints / "step-000004").rename(tmp_path / "precious")
    (run.checkpoints / "step-000004").symlink_to(tmp_path / "precious", target_is_directory=True)
    with pytest.raises(UserError, match="Nothing is saved"):
        delete_step(run, 4)
    assert len(list((tmp_path / "precious").iterdir())) == 4
