"""Output in code pages that lack most characters, and settings files as Windows' editors save them."""

from __future__ import annotations

import ast
import codecs
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file

import run as run_script
from tests.unit.dataset.drawings import folder_of
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.training_helpers import configuration
from trainer.cli import main
from trainer.commands.progress_bar import TrainingProgress
from trainer.config import run_config
from trainer.config.prepare_settings import read_settings
from trainer.core.errors import UserError
from trainer.core.terminal import escape_unprintable
from trainer.families import family_named
from trainer.launch.accelerate_config import accelerate_config
from trainer.launch.prepared_run import PreparedRun, write_run_folder
from trainer.runs import events
from trainer.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]
NAME = "Zoë 猫 🎨"  # cp1252 has only the first word, cp932 only the second
CODE_PAGES = ("cp1252", "cp932", "ascii")


class Output:
    """Standard output and error as Windows makes them when they are redirected."""

    def __init__(self, code_page: str) -> None:
        self._code_page = code_page
        self.streams = [io.TextIOWrapper(io.BytesIO(), encoding=code_page, errors="strict", newline="\n") for _ in range(2)]

    def __call__(self) -> str:
        """What was written to standard output since the last call."""
        self.streams[0].flush()
        raw = self.streams[0].detach()
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode(self._code_page)


def redirected(code_page: str, monkeypatch: pytest.MonkeyPatch) -> Output:
    """From here on to the end of the test; a fixture would come before pytest's own."""
    output = Output(code_page)
    monkeypatch.setattr(sys, "stdout", output.streams[0])
    monkeypatch.setattr(sys, "stderr", output.streams[1])
    return output


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_a_dataset_is_prepared_and_reported_in_any_code_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code_page: str) -> None:
    output = redirected(code_page, monkeypatch)
    source = folder_of(tmp_path / NAME, 2)
    (source / f"{NAME}.png").write_bytes(b"no image")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--trigger", NAME, "--class", "girl", "--resolution", "64"]
    assert main(arguments) == 0
    assert main([*arguments, "--json"]) == 0
    *lines, last = output().splitlines()
    assert lines[0].startswith("Dataset Zo") and lines[0].endswith("\\U0001f3a8_girl")
    assert json.loads(last)["rejected"][0]["source"] == f"{NAME}.png"


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_info_prints_in_any_code_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code_page: str) -> None:
    output = redirected(code_page, monkeypatch)
    path = tmp_path / "猫.safetensors"
    save_file(lora_tensors(small_layers()), path, {"modelspec.trigger_phrase": NAME, "modelspec.title": NAME})
    assert main(["info", str(tmp_path / f"{NAME} nowhere.safetensors")]) == 1
    assert main(["info", str(path), "--json"]) == 0
    print("---")
    assert main(["info", str(path)]) == 0
    as_json, text = output().split("---")
    report = json.loads(as_json)
    assert (report["trigger_words"], report["path"]) == ([NAME], str(path))
    assert "\\U0001f3a8" in text


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_progress_is_written_in_any_code_page(monkeypatch: pytest.MonkeyPatch, code_page: str) -> None:
    output = redirected(code_page, monkeypatch)
    escape_unprintable()
    with TrainingProgress(Console(file=sys.stdout, width=200)) as progress:
        progress.show(events.Sample(f"/samples/{NAME}.png", NAME, 1, 2, 0))
        progress.show(events.Warning_(f"{NAME} \udcff"))
        progress.show(events.Step(1, 2, 1, 0.1, 0.1, 1e-4, 1.0, 2.0, 3.0, 1.0))
    text = output()
    assert "\\U0001f3a8.png" in text and "\\udcff" in text


def test_prepare_with_redirected_output_exits_with_0(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    arguments = ["prepare", str(source), "--out", str(tmp_path / "猫"), "--trigger", "a", "--resolution", "64"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, str(ROOT / "trainer"), *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert "\\u732b" in done.stdout.decode("cp1252")


_AS_CHILD = """
import runpy, sys, types
loop = types.ModuleType("trainer.training.run")
loop.train_run = lambda run, watch_stdin: print("printed \\u732b \\udcff") or 0
sys.modules["trainer.training.run"] = loop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_training_process_writes_utf_8_even_if_python_ignores_the_environment(tmp_path: Path) -> None:
    isolated = [sys.executable, "-I", "-X", "utf8=0", "-c", _AS_CHILD, str(ROOT / "trainer" / "entry.py")]  # as a portable Python
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [*isolated, "--run", str(tmp_path), "--watch-stdin"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.stdout.decode("utf-8").strip() == "printed 猫 \\udcff", done.stderr.decode("utf-8", "replace")


def test_run_py_prints_the_output_of_pip_in_any_code_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*, tests: bool) -> None:
        run_script.say(NAME)
        raise run_script.SetupError(f"pip could not install {NAME} \ufffd")

    monkeypatch.setattr(run_script, "install", no_room)
    monkeypatch.setattr(sys, "argv", ["run.py", "test"])
    output = redirected("cp1252", monkeypatch)
    assert run_script.main() == 1
    assert "\\u732b" in output()


def test_square_brackets_in_names_are_not_markup() -> None:
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream, width=200)) as progress:
        progress.show(events.Sample("/samples/[red]/a[/].png", "", 1, 2, 0))
        progress.show(events.Checkpoint(2, "", "/loras/[bold]b[/bold].safetensors"))
        progress.show(events.Warning_("a [/x] b"))
    assert all(text in stream.getvalue() for text in ("/[red]/a[/].png", "[bold]b[/bold].safetensors", "warning: a [/x] b"))


def scripts() -> list[Path]:
    """What a person starts and that prints."""
    scripts = [*ROOT.glob("benchmarks/*.py"), ROOT / "trainer" / "cli.py"]
    return [
        path for path in scripts if "print(" in (text := path.read_text(encoding="utf-8")) and ("__main__" in text or path.stem == "cli")
    ]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_every_script_escapes_characters_that_its_output_lacks(path: Path) -> None:
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "escape_unprintable" in calls


TOML = f'name = "a"\n\n[base]\ncheckpoint = "/models/{NAME}.safetensors"\n\n[dataset]\npath = "/data/猫"\n'
READ = {"plain": TOML.encode(), "UTF-8 with a mark": codecs.BOM_UTF8 + TOML.encode(), "CRLF": TOML.replace("\n", "\r\n").encode()} | {
    "PowerShell": codecs.BOM_UTF16_LE + TOML.encode("utf-16-le"),
    "UTF-16, the other order": codecs.BOM_UTF16_BE + TOML.encode("utf-16-be"),
}
REFUSED = {
    "ANSI, Western": (TOML.replace("猫", "Müller").replace(" 🎨", "").encode("cp1252", "ignore"), "line 4 has the byte 0xEB"),
    "ANSI, Japanese": (b"# a\n# b\nname = '" + "猫".encode("cp932") + b"'", "line 3 has the byte 0x94"),
    "UTF-16 without a mark": ('name = "a"'.encode("utf-16-le"), "NUL"),
    "half a UTF-16": (codecs.BOM_UTF16_LE + b"a\x00b", "truncated"),
}


@pytest.mark.parametrize("name", READ)
def test_settings_are_read_as_editors_save_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(READ[name])
    settings = run_config.load_config(path)
    assert settings.base.checkpoint == f"/models/{NAME}.safetensors"
    assert settings.dataset.path == str(tmp_path / "/data/猫")  # on Windows, of the drive of the settings
    assert read_settings(path)["base"] == {"checkpoint": f"/models/{NAME}.safetensors"}


@pytest.mark.parametrize("name", REFUSED)
def test_other_encodings_are_rejected_with_a_hint(tmp_path: Path, name: str) -> None:
    data, reason = REFUSED[name]
    path = tmp_path / "a.toml"
    path.write_bytes(data)
    given_config = partial(accelerate_config, configuration(tmp_path / "a.safetensors", tmp_path, tmp_path))
    readers: list[Callable[[Path], object]] = [run_config.load_config, read_settings, given_config]
    for read in readers:
        with pytest.raises(UserError, match="UTF-8") as caught:
            read(path)
        assert str(path) in caught.value.message and reason in caught.value.message
        assert "\n" not in caught.value.message and "Save it as UTF-8" in caught.value.hint


def test_an_accelerate_configuration_is_stored_as_utf_8(tmp_path: Path) -> None:
    config = tmp_path / "given.yaml"
    config.write_bytes(codecs.BOM_UTF16_LE + "main_process_ip: 猫\n".encode("utf-16-le"))
    folder = RunFolder(tmp_path / "run", "run")
    write_run_folder(PreparedRun(folder, configuration(tmp_path / "a.safetensors", tmp_path, tmp_path), family_named("sd1")), config)
    assert (folder.path / "accelerate.yaml").read_text(encoding="utf-8") == "main_process_ip: 猫\n"
