"""Publishing: several processes at once, killed processes, and what they leave in a folder that menus list."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from tests.unit.launch.helpers import finished
from trainer.core.files.writing import atomic_path
from trainer.runs.publish import publish, put, remove_left_over, restore
from trainer.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]
# what ComfyUI lists (folder_paths.supported_pt_extensions), and what readers of image folders take
LISTED = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft", ".gguf", ".png", ".jpg", ".jpeg", ".webp"}
_HELD = """
import os, sys
from trainer.runs.publish import publish
from trainer.runs.run_folder import RunFolder
from pathlib import Path
flush = os.fsync
def hold(file):
    flush(file)
    print("written", flush=True)
    sys.stdin.read()
os.fsync = hold
publish(RunFolder(Path(sys.argv[1]), "style"), sys.argv[2])
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("NOT CHECKED: there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(params=["same disk", "another disk", "no hard links"])
def loras(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of LoRAs: beside the runs, on another file system, or on one like exFAT."""
    if request.param == "another disk":
        return Path(request.getfixturevalue("elsewhere"))
    if request.param == "no hard links":

        def refused(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    folder = tmp_path / "loras"
    folder.mkdir()
    return folder


def test_two_loras_of_one_name_published_at_once_are_both_kept(loras: Path, tmp_path: Path) -> None:
    for number in range(20):
        runs = [finished(tmp_path / "runs", f"{letter}{number:015d}", f"{letter} {number}".encode()) for letter in "ab"]
        barrier = Barrier(2)

        def at_once(run: RunFolder, folder: Path, barrier: Barrier = barrier) -> Path | None:
            barrier.wait()
            return publish(run, str(folder))

        with ThreadPoolExecutor(2) as pool:
            places = list(pool.map(at_once, runs, [loras / str(number)] * 2))
        assert [place.read_bytes() for place in places if place] == [run.lora.read_bytes() for run in runs]
        assert len(set(places)) == 2
        assert sorted(path.name for path in (loras / str(number)).iterdir()) == sorted(place.name for place in places if place)


def test_the_same_lora_published_twice_at_once_is_one_file(loras: Path, tmp_path: Path) -> None:
    for number in range(20):
        runs = [finished(tmp_path / f"runs {letter}", f"{number:016d}", b"the same") for letter in "ab"]
        with ThreadPoolExecutor(2) as pool:
            places = list(pool.map(lambda run, folder: publish(run, str(folder)), runs, [loras / str(number)] * 2))
        assert places == [loras / str(number) / "style.safetensors"] * 2
        assert [path.name for path in (loras / str(number)).iterdir()] == ["style.safetensors"]


@contextmanager
def held_in_mid_publish(run: RunFolder, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written the file to publish, but not moved it yet. It is killed at the end of the block."""
    find = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"  # a portable Python does not look into its folder
    command = [sys.executable, "-c", find + _HELD, str(run.path), str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("where", ["same disk", "another disk"])
def test_a_killed_publication_leaves_nothing_that_menus_list(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    loras = tmp_path / "loras" if where == "same disk" else Path(request.getfixturevalue("elsewhere"))
    loras.mkdir(exist_ok=True)
    run, other = finished(tmp_path / "runs", "0123456789abcdef", b"one"), finished(tmp_path / "runs", "fedcba9876543210", b"two")
    with held_in_mid_publish(run, loras):
        assert not [path for path in loras.rglob("*") if path.suffix in LISTED]
        assert [path.name.startswith(".partial-") for path in loras.iterdir()] == [True] * (where == "another disk")
        # a process that is still writing is not disturbed by others
        assert publish(other, str(loras)) == loras / "style.safetensors"
        assert len(list(loras.iterdir())) == (2 if where == "another disk" else 1)
    assert publish(other, str(loras)) == loras / "style.safetensors"
    assert [path.name for path in loras.iterdir()] == ["style.safetensors"]
    assert publish(run, str(loras)) == loras / "style_2.safetensors"
    assert sorted(path.name for path in run.path.iterdir()) == ["result.json", "style.safetensors"]


def test_publishing_succeeds_although_another_process_removes_leftovers(tmp_path: Path, elsewhere: Path) -> None:
    run = finished(tmp_path / "runs", "0123456789abcdef", b"one")
    with held_in_mid_publish(run, elsewhere) as process:
        remove_left_over(elsewhere)
        _, _ = process.communicate("", timeout=60)
        assert process.returncode == 0
    assert [path.read_bytes() for path in elsewhere.iterdir()] == [b"one"]


def test_half_written_files_of_earlier_versions_are_deleted_after_a_day(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".partial-0123456789abcdef.safetensors", tmp_path / ".partial-fedcba9876543210.safetensors"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, times=(time.time() - 90_000,) * 2)
    (tmp_path / "link").symlink_to(fresh)
    (tmp_path / "mine.safetensors").write_bytes(b"whole")
    remove_left_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "link", "mine.safetensors"]


@pytest.mark.parametrize("suffix", sorted(LISTED))
def test_a_file_being_written_has_no_name_that_menus_list(suffix: str, tmp_path: Path) -> None:
    with atomic_path(tmp_path / f"name{suffix}") as temporary:
        assert temporary.exists()
        assert temporary.suffix not in LISTED


def test_a_folder_or_broken_link_of_the_same_name_counts_as_another_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert put(b"one", [tmp_path / "folder", tmp_path / "link", tmp_path / "free"]) == tmp_path / "free"
    assert put(b"one", [tmp_path / "folder", tmp_path / "link"]) is None
    assert not (tmp_path / "nowhere").exists()


def test_a_lost_lora_is_restored_from_where_it_was_published(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", "0123456789abcdef", b"one")
    loras = tmp_path / "loras"
    place = publish(run, str(loras))
    for damage in (b"onf", None):
        run.lora.unlink()
        if damage:
            run.lora.write_bytes(damage)
        assert run.finished() is None
        assert restore(run, str(loras)) == place
        assert run.finished() is not None
    run.lora.unlink()
    (loras / "style.safetensors").write_bytes(b"onf")
    assert restore(run, str(loras)) is None
    assert restore(run, "") is None
