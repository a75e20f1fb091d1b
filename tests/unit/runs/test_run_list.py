"""Runs are listed by their small files, damaged ones too, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tools.run_folders import make_run
from trainer.runs import run_list
from trainer.runs.run_list import ListedRun, RunList, disk_size


def listed(runs: Path) -> list[ListedRun]:
    return RunList(runs).all()


def test_a_finished_run_is_described(tmp_path: Path) -> None:
    run = make_run(tmp_path, "style", states=(4, 8))
    (found,) = listed(tmp_path)
    assert (found.folder, found.name, found.base, found.state) == (run.path, "style", "anime.safetensors", "finished")
    assert (found.step, found.steps, found.epochs, found.saved, found.images) == (8, 8, 2, (4, 8), 6)
    assert found.loss == pytest.approx(0.6)
    assert found.started == 1_750_000_000.0
    assert found.loras == (4, 8)
    assert found.image == run.samples / "epoch-002-00.png"
    assert found.bytes == sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("ending", "state", "step"),
    [("stopped", "stopped", 6), ("error", "failed", 6), ("step", "stopped", 6)],
    ids=["stopped", "failed", "killed"],
)
def test_an_unfinished_run_says_how_far_it_came(tmp_path: Path, ending: str, state: str, step: int) -> None:
    make_run(tmp_path, "style", steps=6, ending=ending)
    (found,) = listed(tmp_path)
    assert (found.state, found.step, found.steps) == (state, step, 8)


def test_the_run_that_started_last_comes_first(tmp_path: Path) -> None:
    for name, start in (("first", 100.0), ("third", 300.0), ("second", 200.0)):
        make_run(tmp_path, name, start=start)
    assert [run.name for run in listed(tmp_path)] == ["third", "second", "first"]


@pytest.mark.parametrize("lock", [".lock", ".child.lock"])
def test_a_run_that_a_process_trains_is_running_until_it_lets_go(tmp_path: Path, lock: str) -> None:
    run, runs = make_run(tmp_path, "style", steps=3, ending="step"), RunList(tmp_path)
    with FileLock(str(run.path / lock)):
        assert [each.state for each in runs.all()] == ["running"]
    assert [each.state for each in runs.all()] == ["stopped"]


def test_a_damaged_run_is_listed_with_what_is_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, "my_style")
    run.config.write_text("{", encoding="utf-8")
    run.result.write_text('{"steps": 8}', encoding="utf-8")
    run.lineage.write_bytes(b"\xff")
    run.events.write_bytes(b"\xffnot an event\n\n[]\n")
    (found,) = listed(tmp_path)
    assert (found.name, found.state, found.step, found.loss, found.epochs, found.base) == ("my_style", "stopped", 0, None, 0, "")


def test_folders_without_a_log_of_their_own_are_no_runs(tmp_path: Path) -> None:
    real = make_run(tmp_path / "elsewhere", "real")
    runs = tmp_path / "runs"
    for name in ("_cache", "empty", "with a folder", "with a link"):
        (runs / name).mkdir(parents=True)
    (runs / "_cache" / "events.jsonl").touch()
    (runs / "with a folder" / "events.jsonl").mkdir()
    (runs / "with a link" / "events.jsonl").symlink_to(real.events)
    (runs / "link-0123456789abcdef").symlink_to(real.path, target_is_directory=True)
    (runs / "file").touch()
    assert listed(runs) == []
    assert listed(tmp_path / "nowhere") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="NOT CHECKED: no named pipes here")
def test_a_pipe_in_place_of_the_log_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "style-0123456789abcdef"
    folder.mkdir()
    os.mkfifo(folder / "events.jsonl")
    assert listed(tmp_path) == []


def test_images_and_states_behind_links_do_not_count(tmp_path: Path) -> None:
    other, run = make_run(tmp_path / "elsewhere", "other", states=(4,)), make_run(tmp_path / "runs", "style", states=())
    for own, linked in ((run.checkpoints, other.checkpoints), (run.samples, other.samples)):
        for path in sorted(own.iterdir()):
            path.unlink()
        own.rmdir()
        own.symlink_to(linked, target_is_directory=True)
    (found,) = listed(tmp_path / "runs")
    assert (found.saved, found.images, found.image) == ((), 0, None)
    assert found.bytes == sum(path.stat().st_size for path in run.path.iterdir() if path.is_file())


def test_a_file_that_two_runs_share_counts_once_in_the_total(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second", states=())
    second.checkpoints.joinpath("step-000004").mkdir()
    os.link(first.checkpoints / "step-000004" / "state.pt", second.checkpoints / "step-000004" / "state.pt")
    runs = listed(tmp_path)
    assert disk_size(runs) == sum(run.bytes for run in runs) - 1000


def test_an_unchanged_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = make_run(tmp_path, "style"), RunList(tmp_path)
    real, read = run_list.describe, []

    def describe(folder: Path) -> ListedRun:
        read.append(folder)
        return real(folder)

    monkeypatch.setattr(run_list, "describe", describe)
    before = runs.all()
    assert runs.all() == before
    assert read == [run.path]
    (run.checkpoints / "step-000004" / "state.pt").unlink()
    (after,) = runs.all()
    assert len(read) == 2
    assert after.bytes == before[0].bytes - 1000
