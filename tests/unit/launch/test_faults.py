"""Real faults: a full disk, a child killed while writing, a child that hangs, a clock that is set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.tools.children.processes import of_run
from tests.tools.parameters import mark_long
from tests.unit.launch.helpers import half_files, when
from tests.unit.training_helpers import UNDISTURBED, configuration, train_here
from trainer import lorafile
from trainer.config.run_config import RunConfig
from trainer.core.errors import Cancelled, UserError
from trainer.core.files.writing import PARTIAL
from trainer.launch import child_process, launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events, states
from trainer.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow
SETTINGS = UNDISTURBED
STEPS = 6


@dataclass(frozen=True)
class SmallDisk:
    """A file system that a test can fill."""

    path: Path

    def fill(self, leave: int) -> None:
        """Fill the disk at once, as a child may be writing, and leave ``leave`` bytes."""
        with (self.path / "ballast").open("ab") as file:
            while (free := os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize) > leave:
                with suppress(OSError):  # the child was faster: ask again how much is free
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free - leave)

    def empty(self) -> None:
        """Free the space again."""
        (self.path / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """32 MB of memory, mounted as a disk."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("NOT CHECKED: a small disk can be mounted only on Linux and as root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NOT CHECKED: no small disk can be mounted here ({mounted.stderr.strip()})")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def is_full(error: UserError, disk: SmallDisk) -> bool:
    """Whether the message names the full disk and the hint says what to do."""
    return (error.kind, str(disk.path) in error.message, "Free some space" in error.hint) == ("disk", True, True)


@pytest.mark.usefixtures("quick_children")
def test_a_disk_that_fills_while_caching_latents_is_reported(
    disk: SmallDisk, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, disk.path, SETTINGS)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=when(lambda event: isinstance(event, events.Plan), lambda: disk.fill(12_288)))
    assert is_full(caught.value, disk), caught.value
    assert not half_files(disk.path)
    disk.empty()
    assert launcher.train(prepare_run(config)).lora.read_bytes() == expected


@pytest.mark.usefixtures("quick_children")
def test_a_disk_that_fills_before_a_checkpoint_keeps_the_earlier_ones(
    disk: SmallDisk, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, disk.path, SETTINGS)
    run = prepare_run(config).folder
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=when(lambda event: isinstance(event, events.Checkpoint), lambda: disk.fill(65_536)))
    assert is_full(caught.value, disk), caught.value
    assert not half_files(disk.path)
    saved, _ = states.newest(run.checkpoints)
    assert saved is not None
    assert 2 <= saved.step < STEPS
    disk.empty()
    received: list[events.Event] = []
    result = launcher.train(prepare_run(config), on_event=received.append)
    assert [event.start_step for event in received if isinstance(event, events.Plan)] == [saved.step]
    assert result.lora.read_bytes() == expected


@pytest.mark.usefixtures("quick_children")
def test_a_full_disk_at_export_loses_no_step(disk: SmallDisk, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, disk.path, SETTINGS)
    run = prepare_run(config).folder
    launcher.train(prepare_run(config))
    run.lora.unlink()  # as if the run had ended just before its export
    run.result.unlink()
    disk.fill(65_536)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config))
    assert is_full(caught.value, disk), caught.value
    assert not run.lora.exists()
    assert not half_files(disk.path)
    disk.empty()
    received: list[events.Event] = []
    assert launcher.train(prepare_run(config), on_event=received.append).lora.read_bytes() == expected
    assert not any(isinstance(event, events.Step) for event in received)


@pytest.mark.usefixtures("quick_children")
def test_a_full_lora_folder_keeps_the_lora_in_the_run_and_earlier_published_files(
    disk: SmallDisk, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "output.publish": str(disk.path)}
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", settings)
    (disk.path / "style.safetensors").write_bytes(b"an earlier LoRA")
    disk.fill(16_384)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config))
    assert is_full(caught.value, disk), caught.value
    assert prepare_run(config).folder.lora.read_bytes() == expected
    assert sorted(path.name for path in disk.path.iterdir()) == ["ballast", "style.safetensors"]
    disk.empty()
    again = launcher.train(prepare_run(config))
    assert again.reused
    assert again.lora.read_bytes() == expected
    assert (disk.path / "style.safetensors").read_bytes() == b"an earlier LoRA"


posix = pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: POSIX signals")


@contextmanager
def caught_in_mid_write(run: RunFolder, folder: Path, pattern: str, act: Callable[[list[psutil.Process]], bool]) -> Iterator[None]:
    """Train a run. While a file that matches ``pattern`` is being written in ``folder``, call ``act`` with the run's processes.

    ``act`` returns whether it caught them in time; if not, the next write is waited for.
    """
    over = threading.Event()

    def watch() -> None:
        victims: list[psutil.Process] = []
        while not over.is_set():
            victims = victims or of_run(run.path)
            while victims and not over.is_set():
                if any(folder.glob(pattern)) and act(victims):
                    return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def kill_in_mid_write(config: RunConfig, folder: Path, pattern: str) -> None:
    """Train until a file that matches ``pattern`` is being written in ``folder``, and kill the child at that moment."""

    def kill(victims: list[psutil.Process]) -> bool:
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        return True

    with caught_in_mid_write(prepare_run(config).folder, folder, pattern, kill), pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config))
    assert caught.value.kind == "child", caught.value
    assert any(folder.glob(pattern)), "the child was killed after it had finished writing"


@posix
@pytest.mark.parametrize("moment", mark_long(["checkpoint", "export"], "export"))
def test_a_child_killed_while_writing_loses_at_most_that_file(
    moment: str, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    run = prepare_run(config).folder
    if moment == "checkpoint":
        kill_in_mid_write(config, run.checkpoints, f"{PARTIAL}{4:06d}-*")
        resumed_at = 2
    else:
        kill_in_mid_write(config, run.path, f"{PARTIAL}*.safetensors.tmp")
        resumed_at = STEPS
    assert not run.lora.exists()
    again = train_here(config)
    assert [event.start_step for event in again.told if isinstance(event, events.Plan)] == [0, resumed_at]
    assert again.run.lora.read_bytes() == expected
    assert not half_files(run.path)


@posix
def test_a_stop_while_a_lora_is_written_leaves_it_complete(
    shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "_RESPONSE_SECONDS", 60.0)  # it is suspended while it writes
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    run = prepare_run(config).folder
    written: list[Path] = []
    held, told_to_stop = threading.Event(), threading.Event()

    def hold(processes: list[psutil.Process]) -> bool:
        for process in processes:
            process.suspend()
        written.extend(path.parent for path in run.checkpoints.glob(f"step-*/{PARTIAL}*.safetensors.tmp"))
        if written:
            held.set()
            told_to_stop.wait(60)
            time.sleep(0.5)  # by now its pipe is closed, so that it notices the stop before it writes on
        for process in processes:
            process.resume()
        return bool(written)

    def should_stop() -> bool:
        if held.is_set():
            told_to_stop.set()
        return held.is_set()

    with caught_in_mid_write(run, run.checkpoints, f"step-*/{PARTIAL}*.safetensors.tmp", hold), pytest.raises(Cancelled):
        launcher.train(prepare_run(config), should_stop=should_stop)
    assert not half_files(run.path)
    lorafile.verify_lora(next(written[0].glob("*.safetensors")))
    assert train_here(config).run.lora.read_bytes() == expected


@posix
@pytest.mark.usefixtures("quick_children")
def test_a_child_that_hangs_is_stopped_and_the_run_can_resume(
    shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    run = prepare_run(config).folder

    def freeze() -> None:
        for process in of_run(run.path):
            process.suspend()

    with pytest.raises(UserError) as caught:
        freeze_at_3 = when(lambda event: isinstance(event, events.Step) and event.step == 3, freeze)
        launcher.train(prepare_run(config), on_event=freeze_at_3, silent_seconds=8)
    assert caught.value.kind == "hung"
    assert "sent nothing for 8 seconds" in caught.value.message
    assert "resume from" in caught.value.hint
    assert not of_run(run.path)
    assert launcher.train(prepare_run(config)).lora.read_bytes() == expected


@pytest.mark.usefixtures("quick_children")
@pytest.mark.parametrize("jump", [-10 * 365 * 86_400.0, 10 * 365 * 86_400.0], ids=["back", "forward"])
def test_setting_the_clock_between_two_starts_changes_nothing(
    jump: float, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    run = prepare_run(config).folder
    launcher.train(prepare_run(config))
    # the first start, logged and dated by a different clock, and stopped before its export
    lines = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    run.events.write_text("".join(json.dumps({**line, "time": line["time"] + jump}) + "\n" for line in lines), encoding="utf-8")
    moment = time.time() + jump
    for number, folder in enumerate(sorted(run.checkpoints.glob("step-*"))):
        os.utime(folder, (moment - number, moment - number))  # the newest state has the oldest date
    for path in (run.lora, run.result, run.loss_curve):
        path.unlink()
    began = time.monotonic()
    received: list[events.Event] = []
    result = launcher.train(prepare_run(config), on_event=received.append)
    first = lines[-1]["time"] - lines[0]["time"]
    assert [event.start_step for event in received if isinstance(event, events.Plan)] == [STEPS]
    assert 0 <= result.seconds <= first + time.monotonic() - began
    assert result.lora.read_bytes() == expected
