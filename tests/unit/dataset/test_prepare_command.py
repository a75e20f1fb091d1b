"""``python -m trainer prepare`` as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.dataset.drawings import folder_of
from trainer.cli import main
from trainer.dataset import PrepareSettings, open_dataset, prepare_dataset


def test_json_is_one_object_with_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", 2, (300, 200))
    (tmp_path / "in" / "bad.png").write_bytes(b"<html>")
    status = main(
        ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--trigger", "mk01", "--class", "girl", "--resolution", "256",
         "--buckets", "--json"]
    )  # fmt: skip
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert status == 0 and err == ""
    assert report["kept"] == 2 and report["buckets"] == {"320x192": 2}
    assert report["rejected"] == [{"source": "bad.png", "reason": "unreadable", "message": "not an image but a web page"}]
    assert report["hash"] == open_dataset(tmp_path / "out" / "mk01_girl").hash


def test_command_line_equals_api(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in" / "5_mk01 girl", 3)
    (source / "1.txt").write_text("smile, watermark", encoding="utf-8")
    main(
        ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "a"), "--trigger", "mk01", "--class", "girl", "--resolution", "64",
         "--crop", "face", "--repeats", "2", "--remove", "watermark", "--replace", "smile=grin", "--shuffle", "--keep-tokens", "2",
         "--caption-dropout", "0.1", "--set", "training.flip=true", "--set", "captions.order=alphabetical", "--json"]
    )  # fmt: skip
    settings = PrepareSettings.model_validate(
        {
            "trigger": "mk01", "class_description": "girl", "resolution": 64, "crop": "face", "repeats": 2,
            "captions": {"remove": ["watermark"], "replace": {"smile": "grin"}, "order": "alphabetical"},
            "training": {"shuffle_caption": True, "keep_tokens": 2, "caption_dropout": 0.1, "flip": True},
        }
    )  # fmt: skip
    mine = prepare_dataset(tmp_path / "in", tmp_path / "b", settings).dataset
    theirs = open_dataset(tmp_path / "a" / "mk01_girl")
    assert theirs.hash == mine.hash and list(theirs.items) == list(mine.items)
    assert (theirs.path / "manifest.json").read_bytes() == (mine.path / "manifest.json").read_bytes()
    assert theirs.training.flip and theirs.items[1].caption == "mk01, grin"


def test_settings_file_with_options_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", 1)
    (tmp_path / "s.toml").write_text('trigger = "old"\nresolution = 64\n[captions]\nsuffix = "best"\n', encoding="utf-8")
    places = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--settings", str(tmp_path / "s.toml")]
    assert main(["prepare", *places, "--trigger", "new"]) == 0
    assert open_dataset(tmp_path / "out" / "new").items[0].caption == "new, best"
    assert "1 image in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "captions.remov=x"], "captions.remov: unknown setting; did you mean captions.remove?"),
        (["--set", "resolution=500"], "multiple of 8"),
        (["--set", "resolution"], "not of the form key=value"),
        (["--trigger", "a,b"], "must not contain a comma"),
        (["--captions", "tags"], "needs a tagger model"),
        (["--background", "nocolour"], "is not a colour"),
        (["--replace", "x"], "--replace takes TAG=TAG"),
        (["--settings", "nowhere.toml"], "cannot be read"),
    ],
)
def test_invalid_options_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    folder_of(tmp_path / "in", 1)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_empty_source_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--trigger", "x"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The folder") and "hint: Put your images there" in error


@pytest.mark.seconds
def test_runs_as_a_program_with_export_and_sheet(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    command = [
        sys.executable, str(Path(__file__).parents[3] / "trainer"), "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"),
        "--trigger", "mk01", "--resolution", "64", "--export", "imagefolder", "--sheet", str(tmp_path / "sheet.png"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (Path(report["export"]) / "train" / "metadata.jsonl").is_file()
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
