"""A child that is asked to stop gets time to save its state if it reports that it saves; else it is killed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.training_helpers import configuration, make_dataset
from trainer.config.run_config import RunConfig
from trainer.core.errors import Cancelled
from trainer.launch import child_process, launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events, states
from trainer.runs.run_folder import RunFolder
from trainer.training import event_writer

# what a child does once its standard input has ended, after it has told of two steps
_CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from trainer.runs import events
from trainer.training.event_writer import EventLog
run = Path(sys.argv[-1])
emit = EventLog(run / "events.jsonl")
emit(events.Phase("training", 2, 9))
sys.stdin.read()
{then}
"""
_SAVES = """
emit(events.Phase(events.SAVING, 2, 9))
time.sleep({seconds})
(run / "saved").touch()
emit(events.Stopped(2, "where"))
os._exit(3)
"""
Follow = Callable[..., tuple[RunFolder, list[events.Event]]]
ROOT = Path(launcher.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path) -> RunConfig:
    root = tmp_path_factory.mktemp("following")
    return configuration(shallow_checkpoint, make_dataset(root, 2), root / "runs")


@pytest.fixture
def follow(configured: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follow:
    """Start a child that runs the given code, stop it once it trains, and return its folder and the events."""

    def stopped(then: str, saved: int = 0) -> tuple[RunFolder, list[events.Event]]:
        program = tmp_path / "child.py"
        program.write_text(_CHILD.format(root=str(ROOT), then=then), encoding="utf-8")
        monkeypatch.setattr(launcher, "command", lambda run: [sys.executable, str(program), str(run.path)])
        own = configured.model_copy(update={"output": configured.output.model_copy(update={"runs": str(tmp_path / "runs")})})
        run = prepare_run(own).folder
        if saved:
            states.save(run.checkpoints, saved, {})
        received: list[events.Event] = []
        with pytest.raises(Cancelled):
            launcher.train(prepare_run(own), on_event=received.append, should_stop=lambda: bool(received), poll_seconds=0.05)
        return run, received

    return stopped


@pytest.mark.seconds
def test_a_child_that_reports_saving_is_waited_for(follow: Follow) -> None:
    seconds = child_process._RESPONSE_SECONDS + 1
    run, received = follow(_SAVES.format(seconds=seconds))
    assert (run.path / "saved").is_file()
    assert [event.name for event in received] == ["phase", "phase", "stopped"]
    saving, stopped = received[-2:]
    assert isinstance(saving, events.Phase) and saving.phase == events.SAVING
    assert isinstance(stopped, events.Stopped) and stopped.step == 2
    assert stopped.time - saving.time >= seconds - 0.1, "it was reported only after saving"


@pytest.mark.seconds
def test_a_silent_child_is_killed_and_the_resume_step_is_reported(
    follow: Follow,
) -> None:
    run, received = follow("time.sleep(600)")
    warning, stopped = received[-2:]
    assert isinstance(warning, events.Warning_) and "from the beginning" in warning.message
    assert isinstance(stopped, events.Stopped) and stopped.step == 0
    assert not (run.path / "saved").exists()


@pytest.mark.seconds
def test_saving_is_limited_in_time(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "SAVING_SECONDS", child_process._RESPONSE_SECONDS + 0.5)
    run, received = follow(_SAVES.format(seconds=600), saved=1)
    warning, stopped = received[-2:]
    assert isinstance(warning, events.Warning_) and "at step 1" in warning.message
    assert isinstance(stopped, events.Stopped) and stopped.step == 1
    assert not (run.path / "saved").exists()


_WATCHES = """
import subprocess, sys
sys.path.insert(0, {root!r})
from trainer.training.event_writer import watch_parent
thread = watch_parent(lambda: print("stopped", flush=True))
subprocess.run([sys.executable, "-c", "import sys; print('read', repr(sys.stdin.read()), flush=True)"], check=True)
thread.join()
"""


def test_subprocesses_of_the_child_get_an_empty_standard_input() -> None:
    command = [sys.executable, "-c", _WATCHES.format(root=str(ROOT))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "read ''\n", "it read from the parent's pipe"
        process.stdin.close()
        assert process.stdout.readline() == "stopped\n"


def test_lines_of_the_parent_arrive_whole_and_in_order_until_the_pipe_ends() -> None:
    reading, writing = os.pipe()
    lines: list[bytes] = []
    reader = threading.Thread(target=event_writer._read_lines, args=(reading, lines.append))
    reader.start()
    for part in (b"one\ntw", b"o\n", b"x" * 100_000 + b"\nhalf"):
        os.write(writing, part)
    os.close(writing)
    reader.join(30)
    os.close(reading)
    assert lines == [b"one", b"two", b"x" * 100_000]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows peeks, see below")
def test_a_process_that_takes_no_lines_leaves_them_in_the_pipe_and_notices_its_end() -> None:
    reading, writing = os.pipe()
    waiting = threading.Thread(target=event_writer._wait_for_end, args=(reading,))
    waiting.start()
    os.write(writing, b"for another process\n")
    assert os.read(reading, 4096) == b"for another process\n"
    assert waiting.is_alive()
    os.close(writing)
    waiting.join(30)
    assert not waiting.is_alive()
    os.close(reading)


@pytest.mark.parametrize(("error", "more"), [(109, False), (233, False), (6, True)], ids=["closed", "not connected", "a terminal"])
def test_on_windows_the_pipe_is_peeked_at_until_it_has_data_or_ends(error: int, more: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a thread in a blocking read blocks all others that ask for the type of the pipe. Windows' calls are simulated."""
    looks = iter([1, 1, 0])

    def peek(handle: object, buffer: None, size: int, read: None, available: Any, left: None) -> int:
        return next(looks)  # nothing is available yet

    kernel = SimpleNamespace(PeekNamedPipe=peek)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(get_osfhandle=lambda number: 1000 + number))
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    monkeypatch.setattr(event_writer, "_POLL_SECONDS", 0)
    assert event_writer._wait_for_data(7) is more
    assert next(looks, None) is None
