"""The command line: help, plans, errors and exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training_helpers import configuration
from trainer import __version__
from trainer.cli import COMMANDS, main
from trainer.commands.started import as_typed
from trainer.core.counting import plural

NAMES = ["prepare", "train", "sample", "export", "info", "check", "runs", "prune", "demo"]
ROOT = Path(__file__).resolve().parents[3]


def output_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    out, _ = output_of(capsys)
    assert ended.value.code == 0
    assert f"{as_typed()} {name}" in out  # a portable Python is named by its path, in quotation marks where that has spaces
    assert len(out.splitlines()) > 5


def test_the_main_help_names_every_command_and_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out, _ = output_of(capsys)
    assert len(COMMANDS) == len(NAMES)
    assert all(f"    {name}" in out for name in NAMES)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in output_of(capsys)[0]


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from trainer.cli import build_parser; build_parser(); "
        "print(sorted({'torch', 'diffusers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_command_and_an_unknown_option_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fly"], ["train"], ["train", "a.toml", "--fast"], []):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage:" in output_of(capsys)[1]


@pytest.fixture
def config_file(tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> Path:
    """A configuration as JSON."""
    path = tmp_path / "config.json"
    path.write_text(configuration(tiny_checkpoint, dataset_folder, tmp_path / "runs").to_json(), encoding="utf-8")
    return path


def test_a_dry_run_prints_the_plan_as_json(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config_file), "--dry-run", "--json", "--set", "training.epochs=4"]) == 0
    plan = json.loads(output_of(capsys)[0])
    assert (plan["images"], plan["steps"], plan["steps_per_epoch"], plan["modules"], plan["precision"]) == (6, 12, 3, 192, "fp32")
    assert plan["memory_gb"] > 0
    assert (plan["outlook"]["kind"], plan["outlook"]["steps"], plan["seconds"]) == ("starts", 12, None)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_a_table(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config_file), "--dry-run"]) == 0
    out, err = output_of(capsys)
    assert "6 images" in out
    assert "192 modules" in out
    assert "unknown until a run" in out
    assert "starts from the beginning (3 steps)" in out
    assert "network" not in err  # alpha is half the rank


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["train", "{config}", "--set", "network.rnak=4"], "network.rank"),
        (["train", "{config}", "--set", "dataset.path=/no/such/dataset", "--dry-run"], "dataset"),
        (["train", "{config}", "--set", "base.checkpoint=/no/such/base.safetensors", "--dry-run"], "base.safetensors"),
        (["train", "{config}", "--set", "base.checkpoint=/no/such/base.safetensors"], "base.safetensors"),
        (["train", "{config}", "--set", "training.device=cuda", "--dry-run"], "CUDA"),
        (["train", "{config}", "--set", "training.precision=fp16", "--dry-run"], "fp16"),
        (["sample", "--base", "/no/such/base.safetensors", "--prompt", "x"], "base.safetensors"),
        (["sample", "--base", "x", "--prompt", "x", "--lora", "/no/such/lora.safetensors:0.5"], "lora.safetensors"),
        (["sample", "--base", "x", "--prompt", "x", "--width", "500"], "500"),
        (["sample", "--base", "x", "--prompt", "x", "--image", "/no/such.png"], "such.png"),
        (["info", "/no/such/lora.safetensors"], "lora.safetensors"),
    ],
)
def test_an_error_prints_a_message_and_a_hint_and_exits_with_1(
    arguments: list[str], word: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "training.device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    assert main([argument.format(config=config_file) for argument in arguments]) == 1
    _, err = output_of(capsys)
    assert "\nerror: " in f"\n{err}"
    assert "\nhint: " in err
    assert word in err
    assert "Traceback" not in err


@pytest.mark.seconds
def test_sample_writes_images_with_and_without_a_lora(
    tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    from tests.unit.training_helpers import train_here

    lora = train_here(configuration(tiny_checkpoint, dataset_folder, tmp_path, {"training.max_steps": 2, "optimizer.lr": 0.05})).run.lora
    common = ["sample", "--base", str(tiny_checkpoint), "--prompt", "a cat", "--steps", "2", "--width", "64", "--height", "64"]
    pictures = []
    for name, more in (("base", []), ("off", ["--lora", f"{lora}:0"]), ("on", ["--lora", str(lora)]), ("again", ["--lora", f"{lora}:1.0"])):
        assert main([*common, *more, "--out", str(tmp_path / name)]) == 0
        (written,) = output_of(capsys)[0].splitlines()
        pictures.append(np.asarray(Image.open(written)).astype(int))
    base, off, on, again = pictures
    assert np.array_equal(base, off)
    assert np.array_equal(on, again)
    assert np.abs(on - base).max() > 3


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [(1, ("image",), "1 image"), (0, ("image",), "0 images"), (2, ("entry", "entries"), "2 entries"), (1, ("entry", "entries"), "1 entry")],
)
def test_counts_use_the_plural(count: int, words: tuple[str, ...], expected: str) -> None:
    assert plural(count, *words) == expected
