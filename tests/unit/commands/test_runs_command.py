"""``runs`` lists the runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools.run_folders import IDENTITY, make_run
from trainer.cli import main


def test_runs_are_listed_with_their_state_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "done", start=200.0)
    make_run(tmp_path, "half", start=100.0, steps=6, ending="stopped")
    assert main(["runs", str(tmp_path)]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.split()[0] == f"done-{IDENTITY}"
    assert "finished  step 8 of 8  loss 0.6000" in first
    assert first.endswith("anime.safetensors")
    assert "stopped   step 6 of 8  loss 0.7000" in second
    assert total == "2 runs, 0.0 MB"


def test_json_has_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "done", states=(4, 8))
    run.config.write_text("{", encoding="utf-8")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (listed,) = printed["runs"]
    assert (listed["run"], listed["name"], listed["saved"], listed["base"]) == (run.path.name, "done", [4, 8], "")
    assert printed["bytes"] == listed["bytes"] == sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


def test_a_folder_without_runs_has_none_and_a_missing_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 runs, 0.0 MB\n"
    assert main(["runs", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
