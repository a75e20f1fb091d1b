"""Files are written completely or not at all, and errors name them."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.core import disk_errors
from trainer.core.files.reading import sha256_file
from trainer.core.files.writing import atomic_path, remove_abandoned, write_atomic


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("new, but only ha")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_the_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "new.bin"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        temporary.write_bytes(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert len(list(path.parent.iterdir())) == 1


def test_text_is_written_as_utf8_without_changing_newlines(tmp_path: Path) -> None:
    write_atomic(tmp_path / "t", "é\r\n猫\n")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\r\n\xe7\x8c\xab\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_written_file_has_the_mode_of_an_ordinary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking for the umask: that changes it for a moment, and other threads may be writing files, too."""
    monkeypatch.delattr(os, "umask")
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_sha256_file_equals_hashlib(tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_345  # several read chunks
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_abandoned_partial_files_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    abandoned, day_old = tmp_path / ".partial-0123456789abcdef.safetensors.tmp", tmp_path / ".partial-fedcba9876543210.json.tmp"
    for path in (abandoned, day_old, tmp_path / "mine.tmp"):
        path.write_bytes(b"half")
    os.utime(day_old, times=(time.time() - 90_000,) * 2)
    with atomic_path(tmp_path / "new.safetensors") as temporary:
        temporary.write_bytes(b"whole")
        remove_abandoned(tmp_path)
        remaining = {abandoned.name} if os.name == "nt" else set()  # without locks it may still be in use
        assert {path.name for path in tmp_path.iterdir()} == {temporary.name, "mine.tmp", *remaining}
    assert (tmp_path / "new.safetensors").read_bytes() == b"whole"


@pytest.mark.parametrize(("refusals", "platform"), [
    *((2, "win32"), (10**6, "win32")),
    pytest.param(1, "linux", marks=pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")),
])  # fmt: skip
def test_on_windows_replace_waits_for_a_file_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, platform: str
) -> None:
    real, calls = os.replace, []

    def refusing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) <= refusals:
            raise PermissionError(13, "Access is denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setattr("trainer.core.files.writing.sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr("trainer.core.files.writing._BUSY_SECONDS", 0.3)
    if (refusals, platform) == (2, "win32"):
        write_atomic(tmp_path / "a", "new")
        assert (tmp_path / "a").read_text(encoding="utf-8") == "new"
        return
    with pytest.raises(PermissionError):
        write_atomic(tmp_path / "a", "new")
    assert not any(tmp_path.iterdir())
    assert (len(calls) > 2) == (platform == "win32")


@pytest.mark.parametrize(("winerror", "words"), [(32, "Another program, a virus"), (1224, "Another program, a virus"), (5, "writable")])
def test_a_file_in_use_is_not_reported_as_a_missing_permission(tmp_path: Path, winerror: int, words: str) -> None:
    error = PermissionError(13, "Access is denied", str(tmp_path / "a"))
    error.winerror = winerror  # type: ignore[attr-defined, unused-ignore]
    disk_error = disk_errors.as_disk_error(error, tmp_path)
    assert disk_error is not None and words in disk_error.hint


def test_an_error_names_the_target_and_not_the_temporary_file(tmp_path: Path) -> None:
    """A folder of its name is in the way here; on Windows, a name that is too long while the temporary one is not."""
    path = tmp_path / "result.json"
    (path / "something").mkdir(parents=True)
    with pytest.raises(OSError, match=r"result\.json") as caught:
        write_atomic(path, b"new")
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
