"""The command line started by its path, as with a portable Python, which looks for modules only where its ``._pth`` file says."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import __version__

ROOT = Path(__file__).resolve().parents[3]
# -I is what a ._pth file does: neither the current folder nor the script's nor PYTHONPATH are looked into
ISOLATED = [sys.executable, "-I", "-W", "error"]


def output_of(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["trainer", "trainer/__main__.py"])
def test_the_path_of_the_trainer_starts_it_from_anywhere(script: str, tmp_path: Path) -> None:
    assert __version__ in output_of([*ISOLATED, str(ROOT / script), "--version"], tmp_path)


@pytest.mark.skipif(bool(sys.flags.isolated), reason="a portable Python does not look into the current folder")
def test_its_name_starts_it_in_the_pack_s_folder() -> None:
    assert __version__ in output_of([sys.executable, "-W", "error", "-m", "trainer", "--version"], ROOT)


def test_modules_of_the_trainer_hide_no_others(tmp_path: Path) -> None:
    trainer = str(ROOT / "trainer")  # what python itself puts first when it starts this folder
    look = (
        f"import importlib.util, runpy, sys; sys.argv = ['trainer', '--version']; sys.path.insert(0, {trainer!r})\n"
        f"try: runpy.run_path({trainer!r} + '/__main__.py', run_name='__main__')\n"
        "except SystemExit: print([name for name in ('cli', 'config', 'core') if importlib.util.find_spec(name)])"
    )
    assert output_of([*ISOLATED, "-c", look], tmp_path).splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["-I"], ["-I", "-s"]])
def test_the_suggested_command_works(arguments: list[str], tmp_path: Path) -> None:
    """A portable Python answers "No module named trainer" to -m."""
    done = subprocess.run(
        [sys.executable, *arguments, str(ROOT / "trainer"), "train", str(tmp_path / "missing.toml")],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    usage = output_of([*ISOLATED, "-X", "utf8", str(ROOT / "trainer"), "--help"], tmp_path)
    assert "-m trainer" not in usage and "-m trainer" not in done.stderr
    suggested = " ".join(usage.partition("Each command has its own help:")[2].split())
    assert suggested.endswith("train --help") and str(ROOT / "trainer") in suggested.replace("\n", "")
    command = suggested if os.name == "nt" else shlex.split(suggested)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert b"usage:" in again.stdout
