"""Prepare, train and info with redirected output in a code page that has only some of the letters in use.

On Windows this is the code page of the system: ``python tests/tools/windows.py --code-page 932 tests/unit/commands/test_code_page.py``.
Elsewhere only standard output and error get it.
"""

from __future__ import annotations

import json
import locale
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.training_helpers import configuration, make_pictures
from trainer.runs import events
from trainer.runs.event_log import read_events

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
CODE_PAGE = locale.getpreferredencoding(False) if os.name == "nt" else "cp932"
# In code page 932, the second byte of ソ, 表 and 能 is a backslash. It has neither ë nor the emoji, 1252 has none of the Japanese letters.
FOLDER, FIRST, SECOND, NAME, TRIGGER = "表 ソ Zoë 🎨", "能 ソ", "顔 ë", "鎖 ソ ë", "表ソë"
CAPTION = "girl with a 帽子, 表示"


@dataclass(frozen=True)
class Output:
    """What a command printed; decoding fails if a byte is not of the code page."""

    stdout: str
    stderr: str


@dataclass(frozen=True)
class Trained:
    """A dataset and a run of two steps, made by the command line, and what it printed."""

    dataset: Path
    lora: Path
    run: Path
    prepared: Output
    trained: Output


def command(*words: str | Path, folder: Path) -> Output:
    """Run the command line with redirected output. It must succeed."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp932"}  # ignored by a portable Python
    line = [sys.executable, "-X", "utf8=0", str(ROOT / "trainer"), *map(str, words)]
    done = subprocess.run(line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=900, check=False)
    output = Output(done.stdout.decode(CODE_PAGE), done.stderr.decode(CODE_PAGE))
    assert done.returncode == 0, output
    assert "Traceback" not in output.stderr and "Logging error" not in output.stderr
    return output


def printed(text: str) -> str:
    """``text`` as the code page can show it."""
    return text.encode(CODE_PAGE, "backslashreplace").decode(CODE_PAGE)


@pytest.fixture(scope="module")
def trained(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(FOLDER)
    source = make_pictures(folder / "写真", 2)
    (source / "00.png").rename(source / f"{FIRST}.png")
    (source / "01.png").rename(source / f"{SECOND}.png")
    (source / f"{FIRST}.txt").write_bytes(f"{CAPTION}\r\n".encode("cp932"))  # as Notepad's "ANSI" in Japan
    (source / f"{SECOND}.txt").write_bytes(f"{CAPTION} 🎨".encode("utf-8-sig"))
    (source / "壊 ソ.png").write_bytes(b"no image")
    settings = ("--trigger", TRIGGER, "--class", "girl", "--resolution", "64")
    prepared = command("prepare", source.name, "--out", "データ", *settings, folder=folder)
    (dataset,) = (path for path in (folder / "データ").iterdir() if path.is_dir())
    changes = {"name": NAME, "training.gradient_accumulation": 1, "output.publish": str(folder / "loras ソ")}
    config = folder / "設定 ë.json"
    config.write_text(configuration(shallow_checkpoint, dataset, folder / "runs 表", changes).to_json(), encoding="utf-8")
    output = command("train", config.name, folder=folder)
    (run,) = (folder / "runs 表").glob(f"{NAME}-*")
    return Trained(dataset, folder / "loras ソ" / f"{NAME}.safetensors", run, prepared, output)


def test_captions_and_image_names_are_kept(trained: Trained) -> None:
    captions = {path.read_text(encoding="utf-8").strip() for path in trained.dataset.rglob("*.txt")}
    assert {caption.partition("girl with")[2] for caption in captions} == {" a 帽子, 表示", " a 帽子, 表示 🎨"}
    text = trained.prepared.stdout + trained.prepared.stderr
    assert printed("壊 ソ.png") in text


def test_training_prints_paths_and_publishes_under_the_name(trained: Trained) -> None:
    assert trained.lora.is_file()
    text = "".join((trained.trained.stdout + trained.trained.stderr).split())
    assert "".join(printed(f"{NAME}.safetensors").split()) in text


def test_logs_of_the_run_are_utf_8(trained: Trained) -> None:
    log = (trained.run / "child.log").read_text(encoding="utf-8")
    assert "Traceback" not in log and "Logging error" not in log
    steps = [event.step for event in read_events(trained.run / "events.jsonl") if isinstance(event, events.Step)]
    assert steps == [1, 2]
    assert json.loads((trained.run / "config.json").read_text(encoding="utf-8"))["name"] == NAME


def test_finished_run_is_found_again(trained: Trained) -> None:
    folder = trained.lora.parents[1]
    text = command("train", "設定 ë.json", folder=folder)
    assert "already trained" in text.stdout + text.stderr


def test_info_prints_trigger_word_and_path(trained: Trained) -> None:
    text = command("info", trained.lora, folder=trained.run).stdout
    assert printed(TRIGGER) in text
    report = json.loads(command("info", trained.lora, "--json", folder=trained.run).stdout)
    assert Path(report["path"]) == trained.lora
    assert TRIGGER in report["trigger_words"][0]
