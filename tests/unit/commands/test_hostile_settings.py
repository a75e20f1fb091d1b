"""Hostile settings, records and paths: a readable error, or the record is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.training_helpers import configuration, make_pictures
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.core.files.reading import sha256_file
from trainer.dataset import open_dataset
from trainer.families import open_checkpoint
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{" * 200_000, b"\xff\xfe\x00", b"x = 1\n" * 500_000, b"null", b"[1]", b'"text"', b""]
)
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_settings_of_the_wrong_type_huge_or_deep_are_rejected(
    content: bytes, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pictures = tmp_path / f"settings{suffix}", make_pictures(tmp_path / "pictures", 1)
    path.write_bytes(content)
    commands = [["train", str(path)], ["train", str(path), "--dry-run"]]
    if content:  # an empty file is a settings file that sets nothing
        commands.append(["prepare", str(pictures), "--out", str(tmp_path / "out"), "--settings", str(path)])
    for command in commands:
        assert main(command) == 1, command
        assert capsys.readouterr().err.startswith("error: ")


DEEP = "[" * 200_000


def test_deeply_nested_lines_in_a_dataset_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = make_pictures(tmp_path / "pictures", 2)
    (pictures / "meta.json").write_text(DEEP, encoding="utf-8")
    (pictures / "metadata.jsonl").write_text(DEEP, encoding="utf-8")
    command = ["prepare", str(pictures), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    made = Path(first["path"])
    for path in (made / "manifest.jsonl", made / ".prepare" / "journal.jsonl"):
        path.write_text(DEEP, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_dataset(made)
    assert caught.value.kind == "dataset"
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == first["hash"]
    (made / "manifest.json").write_text(DEEP, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        open_dataset(made)


def test_deeply_nested_records_in_a_run_are_ignored(tmp_path: Path, shallow_checkpoint: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "name-0", "name")
    run.path.mkdir(parents=True)
    run.lora.write_bytes(b"x")
    for path in (run.result, run.events, tmp_path / "checkpoint-hashes.json"):
        path.write_text(DEEP, encoding="utf-8")
    assert run.finished() is None
    assert read_events(run.events) == []
    assert open_checkpoint(str(shallow_checkpoint)).identity(tmp_path) == sha256_file(shallow_checkpoint)


def test_paths_with_a_nul_are_rejected(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = f"{tmp_path}/a\x00b"
    settings = tmp_path / "run.json"
    settings.write_text(configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs").to_json(), encoding="utf-8")
    keys = ("output.runs", "output.publish", "dataset.path", "base.checkpoint", "base.lora")
    sample = ["sample", "--prompt", "x", "--out", str(tmp_path / "o")]
    picture = tmp_path / "p.png"
    Image.new("RGB", (64, 64)).save(picture)
    for command in (
        ["train", bad], ["info", bad], ["export", bad, str(tmp_path / "o")], ["prepare", bad, "--trigger", "x"],
        ["prepare", str(picture), "--trigger", "x", "--out", bad], ["prune", bad], ["runs", bad], [*sample, "--base", bad],
        [*sample, "--base", "nowhere.safetensors", "--image", bad], *(["train", str(settings), "--set", f"{key}={bad}"] for key in keys),
    ):  # fmt: skip
        assert main(command) == 1, command
        output = capsys.readouterr().err
        assert "error: " in output and "Traceback" not in output
