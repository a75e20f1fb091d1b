"""Disk errors other than a full disk, caused for real: the message, and what is kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.launch.helpers import half_files, when
from tests.unit.training_helpers import UNDISTURBED, configuration, train_here
from trainer.core.disk_errors import as_disk_error, exit_status_for, from_exit_status
from trainer.core.errors import UserError
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events
from trainer.training.recipe import TrainingRecipe

pytestmark = pytest.mark.slow
# A library that makes writes below a folder fail with the error of a number, from the moment on at which a file is there
_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    char link[64], path[4096];
    if (!real) real = dlsym(RTLD_NEXT, "write");
    const char *folder = getenv("FAIL_FOLDER"), *trigger = getenv("FAIL_TRIGGER"), *number = getenv("FAIL_ERRNO");
    if (folder && trigger && number && access(trigger, F_OK) == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0 && !strncmp(path, folder, strlen(folder))) { errno = atoi(number); return -1; }
    }
    return real(file, data, size);
}
"""


def at(step: int, act: Callable[[], object]) -> Callable[[events.Event], None]:
    """Do ``act`` when a step has been done."""
    return when(lambda event: isinstance(event, events.Step) and event.step == step, lambda: (act(), None)[1])


def resumed_at(log: list[events.Event]) -> list[int]:
    return [event.start_step for event in log if isinstance(event, events.Plan)]


def mounted(folder: Path, *arguments: str) -> Path:
    """Mount something at ``folder``, which is made; the test is skipped where that cannot be done."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("NOT CHECKED: a disk can be mounted only on Linux and as root")
    folder.mkdir()
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT CHECKED: {' '.join(arguments)} cannot be mounted here ({done.stderr.strip()})")
    return folder


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for megabytes, and for 200 files."""
    folder = mounted(tmp_path / "few", "-t", "tmpfs", "-o", "size=64m,nr_inodes=200", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own, which can be made to fail as one on a broken drive does."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    if shutil.which("mkfs.ext4") is None or subprocess.run(["mkfs.ext4", "-q", image], check=False).returncode:
        pytest.skip("NOT CHECKED: no ext4 file system can be made here")
    folder = mounted(tmp_path / "drive", "-o", "loop", str(image))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def failing_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], Callable[[], None]]:
    """Make writes of child processes below a folder fail with an error once the returned function has been called."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("NOT CHECKED: there is no C compiler to make writes fail with")
    (tmp_path / "shim.c").write_text(_SHIM, encoding="utf-8")
    library, trigger = tmp_path / "shim.so", tmp_path / "now"
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shim.c", "-ldl"], check=True)

    def arrange(folder: Path, number: int) -> Callable[[], None]:
        for name, value in {"LD_PRELOAD": library, "FAIL_FOLDER": folder, "FAIL_TRIGGER": trigger, "FAIL_ERRNO": number}.items():
            monkeypatch.setenv(name, str(value))
        return trigger.touch

    return arrange


@pytest.mark.usefixtures("quick_children")
def test_exhausted_inodes_are_not_reported_as_a_full_disk(
    few_files: Path, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes
) -> None:
    def use_up() -> None:
        with suppress(OSError):
            for number in range(1000):
                (few_files / f"small {number}").touch()

    config = configuration(shallow_checkpoint, dataset_folder, few_files, UNDISTURBED)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=at(3, use_up))
    assert caught.value.kind == "disk"
    assert "no room for another file" in caught.value.message
    assert str(few_files) in caught.value.message
    assert "full" not in caught.value.message
    assert not half_files(few_files)
    for path in few_files.glob("small *"):
        path.unlink()
    log: list[events.Event] = []
    assert launcher.train(prepare_run(config), on_event=log.append).lora.read_bytes() == expected
    assert resumed_at(log) == [2]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EDQUOT, "quota"), (errno.ENOSPC, "accepts no more data, although"), (errno.EIO, "reports an error")],
    ids=["quota", "no space but free space is shown", "input/output error"],
)
def test_the_error_of_a_child_that_cannot_write_its_log_is_reported(
    number: int,
    words: str,
    failing_writes: Callable[[Path, int], Callable[[], None]],
    shallow_checkpoint: Path,
    dataset_folder: Path,
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = tmp_path / "runs"
    fail = failing_writes(runs, number)
    if number == errno.ENOSPC and shutil.disk_usage(tmp_path).free < 3 << 30:
        pytest.skip("NOT CHECKED: the disk has no 3 GB free")
    config = configuration(shallow_checkpoint, dataset_folder, runs, UNDISTURBED)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=at(3, fail))
    assert caught.value.kind == "disk"
    assert words in caught.value.message
    assert str(runs) in caught.value.message
    assert "start again" in caught.value.hint
    assert "Traceback" not in str(caught.value)
    monkeypatch.delenv("LD_PRELOAD")
    log: list[events.Event] = []
    assert launcher.train(prepare_run(config), on_event=log.append).lora.read_bytes() == expected
    assert resumed_at(log)[0] >= 2


@pytest.mark.usefixtures("quick_children")
def test_a_drive_that_becomes_read_only_during_a_run_is_reported(drive: Path, shallow_checkpoint: Path, dataset_folder: Path) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, drive / "runs", UNDISTURBED)
    # what the kernel does when it finds an ext4 file system damaged
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=at(3, lambda: subprocess.run(["mount", "-o", "remount,abort", drive], check=False)))
    assert (caught.value.kind, "read-only" in caught.value.hint.lower()) == ("permission", True), caught.value
    assert str(drive) in caught.value.message
    assert "start again" in caught.value.hint


@pytest.mark.parametrize("limit", [100_000, 4_000], ids=["of states", "of the log"])
def test_a_file_size_limit_is_reported(limit: int, shallow_checkpoint: Path, dataset_folder: Path, expected: bytes, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("NOT CHECKED: Windows limits no files")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, UNDISTURBED)
    try:
        with pytest.raises(UserError) as caught:  # as ulimit -f does it where ComfyUI is started
            launcher.train(prepare_run(config), before_start=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.kind == "disk"
    assert f"larger than {limit / 1e6:.1f} MB (ulimit -f)" in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "ulimit -f unlimited" in caught.value.hint
    assert "Traceback" not in str(caught.value)
    assert launcher.train(prepare_run(config)).lora.read_bytes() == expected


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_checkpoint_that_disappears_during_a_run_is_reported_and_no_step_is_lost(
    what: str, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: dict[str, object] = {"sample.every_epochs": 1, "sample.prompts": ["a girl"], "sample.steps": 1}
    settings = {**UNDISTURBED, **samples, "training.epochs": 2, "training.max_steps": 8, "training.checkpoint_every": 4}
    whole = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path / "whole", settings))
    assert whole.status == 0
    checkpoint, aside = tmp_path / "mine.safetensors", tmp_path / "aside.safetensors"
    shutil.copyfile(shallow_checkpoint, checkpoint)
    update_weights = TrainingRecipe.update_weights
    done: set[int] = set()

    def updated(self: TrainingRecipe, *step: Any) -> None:
        update_weights(self, *step)
        if self.state.step == 5 and not done:
            done.add(5)
            checkpoint.rename(aside)
            if what == "replaced":
                checkpoint.write_bytes(bytes(aside.stat().st_size))
        if self.state.step == 7:
            os.utime(checkpoint)  # the same file with another date

    monkeypatch.setattr(TrainingRecipe, "update_weights", updated)
    config = configuration(checkpoint, dataset_folder, tmp_path / "runs", {**settings, "name": "style"})
    failed = train_here(config)
    error = failed.told[-1]
    assert isinstance(error, events.Error)
    assert error.kind == "checkpoint"
    assert str(checkpoint) in error.message
    assert f"was {what}" in error.message
    assert "Put " in error.hint
    assert "resumes at step 6" in error.hint
    aside.rename(checkpoint)
    again = train_here(config)
    assert again.status == 0
    assert resumed_at(again.told) == [0, 6]
    tensors = [lora.read_bytes()[8 + int.from_bytes(lora.read_bytes()[:8], "little") :] for lora in (again.run.lora, whole.run.lora)]
    assert tensors[0] == tensors[1]


def test_a_run_without_previews_finishes_without_its_checkpoint(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "mine.safetensors"
    shutil.copyfile(shallow_checkpoint, checkpoint)
    update_weights = TrainingRecipe.update_weights

    def updated(self: TrainingRecipe, *step: Any) -> None:
        update_weights(self, *step)
        checkpoint.unlink(missing_ok=True)

    monkeypatch.setattr(TrainingRecipe, "update_weights", updated)
    trained = train_here(configuration(checkpoint, dataset_folder, tmp_path / "runs", {**UNDISTURBED, "training.max_steps": 2}))
    assert trained.status == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES])
def test_the_exit_status_carries_the_disk_error(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    reported, expected = from_exit_status(exit_status_for(ValueError(), error) or 0, tmp_path), as_disk_error(error, tmp_path)
    assert reported is not None and expected is not None
    assert reported.message.split(" free")[0][:40] == expected.message.split(" free")[0][:40]
    assert exit_status_for(ValueError(), OSError(errno.ENOENT, "")) is None
    assert all(from_exit_status(status, tmp_path) is None for status in (0, 1, 2, 3, 120, 126, 137, -9, -15))
