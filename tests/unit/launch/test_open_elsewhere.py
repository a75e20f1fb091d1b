"""Files that another program has open, which on Windows cannot be read, replaced or deleted meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.launch.helpers import finished
from trainer.core.errors import UserError
from trainer.core.files import paths, writing
from trainer.core.files.writing import remove_partial, write_atomic
from trainer.runs.publish import publish

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="NOT CHECKED: elsewhere an open file can be replaced")


@contextmanager
def held(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Hold ``path`` open so that nobody else can read, replace or delete it, as some virus scanners do; at most for ``seconds``."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.CreateFileW.restype = ctypes.c_void_p
    read, shared_with_nobody, existing = 0x80000000, 0, 3
    handle = kernel.CreateFileW(str(path), ctypes.c_uint32(read), shared_with_nobody, None, existing, 0, None)
    assert handle != ctypes.c_void_p(-1).value, ctypes.get_last_error()  # type: ignore[attr-defined]
    close, over = kernel.CloseHandle, threading.Event()

    def let_go() -> None:
        over.wait(seconds)
        close(ctypes.c_void_p(handle))

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_BUSY_SECONDS", 0.2)


def test_a_published_lora_that_is_briefly_open_is_found_and_not_written_twice(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", "a" * 16, b"a LoRA")
    place = publish(run, str(tmp_path / "loras"))
    assert place is not None
    with held(place, 0.5):
        assert publish(run, str(tmp_path / "loras")) == place
    assert list((tmp_path / "loras").iterdir()) == [place]


@pytest.mark.usefixtures("impatient")
def test_a_lora_that_stays_open_in_another_program_is_neither_lost_nor_replaced(tmp_path: Path) -> None:
    earlier = publish(finished(tmp_path / "runs", "a" * 16, b"an earlier LoRA"), str(tmp_path / "loras"))
    run = finished(tmp_path / "runs", "b" * 16, b"another LoRA")
    assert earlier is not None
    with held(earlier):
        place = publish(run, str(tmp_path / "loras"))
    assert place is not None and place != earlier
    assert (earlier.read_bytes(), place.read_bytes()) == (b"an earlier LoRA", b"another LoRA")


def test_a_file_that_is_briefly_open_is_replaced_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    with held(path, 0.5):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.usefixtures("impatient")
def test_a_file_that_stays_open_is_named_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    with held(path), pytest.raises(PermissionError, match=r"result\.json"):
        write_atomic(path, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("result.json", b"old")]


def test_a_half_written_file_that_is_open_is_deleted_the_next_time(tmp_path: Path) -> None:
    left = tmp_path / f"{writing.PARTIAL}0123456789abcdef.png.tmp"
    left.write_bytes(b"half")
    with held(left):
        remove_partial(tmp_path)
        assert left.exists()
    remove_partial(tmp_path)
    assert not left.exists()


def test_a_path_that_is_too_long_is_refused_with_a_message(tmp_path: Path) -> None:
    """Whether this Windows or Wine supports long paths or not, the result is no internal error."""
    long = tmp_path / ("x" * 120) / ("y" * 120) / "z.safetensors"
    try:
        paths.require_short_path(long)
    except UserError as error:
        assert "Windows allows 259" in error.message
    else:
        write_atomic(long, b"x")
        assert long.read_bytes() == b"x"
