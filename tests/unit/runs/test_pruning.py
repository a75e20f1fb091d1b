"""Pruning deletes saved states of finished runs and old caches, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from tests.unit.training_helpers import configuration, train_here
from trainer.cli import main
from trainer.runs.pruning import Pruned, prune
from trainer.runs.run_folder import RunFolder
from trainer.runs.states import newest


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@pytest.fixture(scope="module")
def finished(shallow_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two steps with a state after each step, beside an unfinished run. Not to be changed."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    changes = {"training.max_steps": 2, "training.checkpoint_every": 1}
    unfinished = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**changes, "name": "unfinished"}))
    unfinished.run.result.unlink()
    return train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes)).run


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, with the other run and the cache."""
    shutil.copytree(finished.path.parent, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / finished.path.name, finished.name)


def test_pruning_deletes_states_of_finished_runs_and_old_caches_only(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    runs = run.path.parent
    old = next((runs / "_cache" / "latents").rglob("*.safetensors"))
    os.utime(old, times=(time.time() - 40 * 86_400,) * 2)
    before = files(runs)
    assert main(["prune", str(runs), "--dry-run"]) == 0
    assert files(runs) == before
    report = capsys.readouterr().out
    assert report.startswith("would free")
    assert main(["prune", str(runs)]) == 0
    name = run.path.name
    states = {f"{name}/checkpoints/step-00000{step}/{file}" for step in (1, 2) for file in ("state.pt", "state.json")}
    gone = before - files(runs)
    assert gone == states | {old.relative_to(runs).as_posix()}
    assert capsys.readouterr().out == report.replace("would free", "freed")
    assert run.finished() is not None
    assert newest(next(runs.glob("unfinished-*")) / "checkpoints")[0] is not None


def test_a_pruned_run_is_still_found_and_its_cache_is_encoded_again(run: RunFolder) -> None:
    runs = run.path.parent
    assert main(["prune", str(runs), "--days", "0"]) == 0
    assert not list((runs / "_cache").rglob("*.safetensors"))
    assert run.finished() is not None


def test_states_of_recently_finished_runs_are_kept(run: RunFolder) -> None:
    runs = run.path.parent
    before = files(runs)
    assert prune(runs, days=30, finished_days=30, dry_run=False) == Pruned(0, 0, 0)
    assert files(runs) == before
    os.utime(run.result, times=(time.time() - 31 * 86_400,) * 2)
    assert prune(runs, days=30, finished_days=30, dry_run=False).states == 2
    assert newest(run.checkpoints)[0] is None
    assert newest(next(runs.glob("unfinished-*")) / "checkpoints")[0] is not None


def test_pruning_leaves_a_run_in_training_alone(run: RunFolder) -> None:
    with FileLock(str(run.path / ".lock")):
        assert main(["prune", str(run.path.parent)]) == 0
    assert newest(run.checkpoints)[0] is not None


def test_no_run_starts_while_its_states_are_pruned(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real, locked = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        with pytest.raises(Timeout):
            FileLock(str(run.path / ".lock")).acquire(timeout=0)
        locked.append(path.name)
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    prune(run.path.parent, days=30, dry_run=False)
    monkeypatch.undo()
    assert sorted(locked) == ["state.json"] * 2 + ["state.pt"] * 2


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.safetensors").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["prune", str(folder)]) == 1
        assert "error: The folder" in capsys.readouterr().err
    assert (tmp_path / "precious.safetensors").exists()
