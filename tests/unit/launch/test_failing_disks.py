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

import pytest

from tests.unit.launch.helpers import half_files
from tests.unit.launch.log import at, resumed_at
from tests.unit.training_helpers import UNDISTURBED, configuration, train_here
from trainer.core.errors import UserError
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events

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
    [
        pytest.param(errno.EDQUOT, "quota", id="quota", marks=pytest.mark.long),
        pytest.param(errno.ENOSPC, "accepts no more data, although", id="no space but free space is shown"),
        pytest.param(errno.EIO, "reports an error", id="input/output error", marks=pytest.mark.long),
    ],
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
    again = train_here(config)
    assert again.run.lora.read_bytes() == expected
    assert resumed_at(again.told)[-1] >= 2


@pytest.mark.usefixtures("quick_children")
def test_a_drive_that_becomes_read_only_during_a_run_is_reported(drive: Path, shallow_checkpoint: Path, dataset_folder: Path) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, drive / "runs", UNDISTURBED)
    # what the kernel does when it finds an ext4 file system damaged
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config), on_event=at(3, lambda: subprocess.run(["mount", "-o", "remount,abort", drive], check=False)))
    assert (caught.value.kind, "read-only" in caught.value.hint.lower()) == ("permission", True), caught.value
    assert str(drive) in caught.value.message
    assert "start again" in caught.value.hint


@pytest.mark.parametrize("limit", [pytest.param(100_000, id="of states", marks=pytest.mark.long), pytest.param(4_000, id="of the log")])
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
    assert train_here(config).run.lora.read_bytes() == expected
