"""``python -m trainer train`` as a user starts it: keys and signals while it trains, more epochs, and starting over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.commands.terminal import ROOT, Terminal, terminal
from tests.unit.training_helpers import configuration, train_here
from trainer.cli import main
from trainer.config.run_config import load_config
from trainer.runs import events
from trainer.runs.event_log import loss_history, read_events, read_events_of
from trainer.runs.run_folder import RunFolder
from trainer.runs.saved_lora import is_undamaged

pytestmark = pytest.mark.slow
EPOCH = 6  # steps: one for each image
in_terminal = pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal is needed")


@pytest.fixture
def config_file(shallow_checkpoint: Path, dataset_folder: Path, runs: Path, tmp_path: Path) -> Path:
    """The configuration of a run that makes an image of one prompt before and after the training."""
    changes: dict[str, object] = {"training.gradient_accumulation": 1, "sample.prompts": ["a cat"], "sample.every_epochs": 1000}
    path = tmp_path / "config.json"
    path.write_text(configuration(shallow_checkpoint, dataset_folder, runs, changes).to_json(), encoding="utf-8")
    return path


def the_run(runs: Path) -> RunFolder:
    """The only run."""
    (folder,) = runs.glob("style-*")
    return RunFolder(folder, "style")


def steps(run: RunFolder) -> int:
    """How many steps were logged."""
    return len(loss_history(run.events)) if run.events.exists() else 0


def saved_steps(run: RunFolder) -> list[int]:
    """Steps with a saved state and an undamaged LoRA beside it."""
    folders = sorted(run.checkpoints.glob("step-*"))
    return [int(each.name.removeprefix("step-")) for each in folders if is_undamaged(next(each.glob("*.safetensors")))]


def train(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train without a terminal to the end."""
    command = [sys.executable, str(ROOT / "trainer"), "train", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)


@in_terminal
def test_keys_save_sample_pause_and_stop_after_the_epoch_and_ctrl_c_keeps_the_step(config_file: Path, runs: Path) -> None:
    with terminal("train", str(config_file), "--set", "training.epochs=2000") as shown:
        shown.wait_for(lambda: "s Save now" in shown.text and any(runs.glob("style-*")))
        run = the_run(runs)
        shown.wait_for(lambda: steps(run) > 0)
        keys_reach_the_training(shown, run)
        shown.press("e")
        assert shown.status() == 130
        assert "Stop after this epoch" in shown.text and "finished work is kept" in shown.text
        assert shown.settings() == shown.before, "the terminal was left without echo"
    (stopped,) = read_events_of(run.events, events.Stopped)
    assert stopped.step == steps(run) and stopped.step % EPOCH == 0
    assert stopped.step in saved_steps(run)

    with terminal("train", str(config_file), "--set", "training.epochs=2000") as shown:
        shown.wait_for(lambda: f"resumes at step {stopped.step} of {2000 * EPOCH}" in shown.text)
        shown.wait_for(lambda: steps(run) > stopped.step)
        shown.press("\x03")
        assert shown.status() == 130
        assert shown.settings() == shown.before
    assert saved_steps(run)[-1] == read_events_of(run.events, events.Stopped)[-1].step == steps(run)


def keys_reach_the_training(shown: Terminal, run: RunFolder) -> None:
    """Pause, then save and sample the paused step, then resume. Keys without a meaning do nothing."""
    shown.press("x")
    shown.press("p")
    shown.wait_for(lambda: any(event.phase == "paused" for event in read_events_of(run.events, events.Phase)))
    paused = steps(run)
    shown.press("s")
    shown.press("i")
    shown.wait_for(lambda: any(event.step == paused for event in read_events_of(run.events, events.Sample)))
    assert steps(run) == paused, "it trained during the pause"
    assert saved_steps(run) == [paused]
    shown.press("p")
    shown.wait_for(lambda: steps(run) > paused)
    asked = [event.action for event in read_events(run.events) if isinstance(event, events.Requested)]
    assert asked == ["pause", "save_now", "sample_now", "resume"]
    for words in ("Pause: after step", "Save now: after step", "Sample now: after step", "Resume"):
        assert words in shown.text


@in_terminal
def test_a_terminated_command_leaves_the_last_step_saved(config_file: Path, runs: Path) -> None:
    with terminal("train", str(config_file), "--set", "training.epochs=2000") as shown:
        shown.wait_for(lambda: any(runs.glob("style-*")) and steps(the_run(runs)) > 1)
        run = the_run(runs)
        shown.process.send_signal(signal.SIGTERM)
        assert shown.status() == -signal.SIGTERM
        shown.wait_for(lambda: bool(read_events_of(run.events, events.Stopped)))  # the training process saves and ends by itself
    assert saved_steps(run) == [steps(run)]


def test_extending_continues_and_starting_over_gives_the_same_lora(
    config_file: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config_file), "--extend", "1"]) == 1
    refused = capsys.readouterr().err
    assert "nothing to extend" in refused and "training.epochs" in refused
    first = train_here(load_config(config_file)).run
    extended = train(config_file, "--extend", "1")
    assert extended.returncode == 0
    assert f"continues from step {EPOCH} of {first.path.name}" in extended.stderr
    (second,) = (RunFolder(path, "style") for path in runs.glob("style-*") if path != first.path)
    assert str(second.lora) in extended.stdout
    continued = second.lora.read_bytes()
    over = train(config_file, "--set", "training.epochs=2", "--from-scratch")
    assert over.returncode == 0
    assert "already trained" not in over.stdout and "continues from step" not in over.stderr
    assert [plan.start_step for plan in read_events_of(second.events, events.Plan)] == [0]
    assert second.lora.read_bytes() == continued


def test_more_epochs_and_starting_over_exclude_each_other(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config_file), "--extend", "1", "--from-scratch"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
