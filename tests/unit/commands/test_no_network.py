"""Preparing, training, describing and exporting contact no other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training_helpers import configuration, make_pictures

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.seconds, pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: a portable Python ignores PYTHONPATH")]
# Python imports this module at the start of every process, the training child included.
_WATCH = """
import os, sys
_LOCAL = ("localhost", "127.0.0.1", "::1", "", None)
def _watch(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            _note(f"{event} {address}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in _LOCAL:
        _note(f"{event} {arguments[0]}")
def _note(text):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        file.write(text + "\\n")
sys.addaudithook(_watch)
with open(os.environ["NETWORK_LOG"] + ".processes", "a") as file:
    file.write(f"{sys.argv}\\n")
"""


def run(folder: Path, *words: str | Path) -> None:
    """Start Python under watch; HF_HUB_OFFLINE, which tests set, would hide an attempt."""
    (folder / "watch").mkdir(exist_ok=True)
    (folder / "watch" / "sitecustomize.py").write_text(_WATCH, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment |= {"PYTHONPATH": str(folder / "watch"), "NETWORK_LOG": str(folder / "network.log")}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_command_contacts_another_machine(shallow_checkpoint: Path, tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 2)
    run(tmp_path, ROOT / "trainer", "prepare", "in", "--out", "data", "--trigger", "x", "--resolution", "64")
    (dataset,) = (path for path in (tmp_path / "data").iterdir() if path.is_dir())
    changes = {"training.max_steps": 2, "sample.every_epochs": 1, "output.publish": str(tmp_path / "loras")}
    (tmp_path / "a.json").write_text(configuration(shallow_checkpoint, dataset, tmp_path / "runs", changes).to_json(), encoding="utf-8")
    run(tmp_path, ROOT / "trainer", "train", "a.json")
    lora = tmp_path / "loras" / "style.safetensors"
    run(tmp_path, ROOT / "trainer", "info", lora)
    run(tmp_path, ROOT / "trainer", "export", lora, tmp_path / "other.safetensors", "--format", "diffusers")
    processes = (tmp_path / "network.log.processes").read_text(encoding="utf-8")
    assert "entry.py" in processes or "--run" in processes, processes
    assert not (tmp_path / "network.log").exists(), (tmp_path / "network.log").read_text(encoding="utf-8")


def test_watch_sees_a_name_that_is_looked_up(tmp_path: Path) -> None:
    code = "import socket\ntry:\n    socket.create_connection(('somewhere.invalid', 80), 1)\nexcept OSError:\n    pass"
    run(tmp_path, "-c", code)
    assert "somewhere.invalid" in (tmp_path / "network.log").read_text(encoding="utf-8")
