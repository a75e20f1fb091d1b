"""Atomic writing, safe names, and where a path may lie."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import unicodedata
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.core import disk_errors
from trainer.core.errors import UserError
from trainer.core.files.paths import expand_home, on_another_machine, require_short_path, resolve_below, safe_name
from trainer.core.files.reading import read_regular, sha256_file
from trainer.core.files.writing import atomic_path, remove_abandoned, write_atomic

# learn.microsoft.com, "Naming Files, Paths, and Namespaces"
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"COM{n}" for n in "123456789¹²³"), *(f"LPT{n}" for n in "123456789¹²³")}
WINDOWS_FORBIDDEN = set('<>:"/\\|?*')


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


@given(st.text(max_size=300))
def test_safe_name_is_valid_on_linux_and_windows(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name not in (".", "..")
    assert len(name) <= 100
    assert len(name.encode("utf-8")) <= 240  # leaves room for an extension within 255
    assert not set(name) & WINDOWS_FORBIDDEN
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    assert not name.endswith((".", " "))
    assert name.split(".")[0].rstrip(" ").upper() not in WINDOWS_DEVICES
    assert safe_name(name) == name


@given(st.text(max_size=40), st.integers(min_value=1, max_value=60))
def test_safe_name_keeps_to_the_limit(text: str, limit: int) -> None:
    assume(safe_name(text, limit=limit) != "untitled")
    assert len(safe_name(text, limit=limit)) <= limit + 1  # one more for the mark in front of a device's name


@given(st.text(max_size=60))
def test_a_safe_name_can_be_created(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(text)
        path.write_text("x")
        assert [entry.name for entry in Path(folder).iterdir()] == [path.name]


@pytest.mark.parametrize("form", ["{}", "{}.txt", "{} .txt", "{}..safetensors", " {} "])
def test_safe_name_avoids_windows_devices(form: str) -> None:
    for device in WINDOWS_DEVICES:
        for text in (form.format(device), form.format(device.lower())):
            assert safe_name(text).split(".")[0].rstrip(" ").upper() not in WINDOWS_DEVICES


@pytest.mark.parametrize("end", [".", " ", "...", " . . "])
def test_safe_name_has_no_ending_that_windows_strips(end: str) -> None:
    assert safe_name(f"name{end}") == "name"
    assert safe_name(f"{end}name") == "name"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("C:\\Windows\\x", "C_Windows_x"),
        ("c:x", "c_x"),
        ("\\\\server\\share\\x", "_server_share_x"),
        ("\\\\?\\C:\\x", "_C_x"),
        ("name::$DATA", "name_$DATA"),
        ("a/../b", "a_.._b"),
    ],
)
def test_safe_name_turns_windows_paths_and_streams_into_one_name(text: str, safe: str) -> None:
    assert safe_name(text) == safe
    assert PureWindowsPath(safe).name == safe
    assert not PureWindowsPath(safe).drive


def test_a_path_too_long_for_windows_is_rejected_with_the_excess() -> None:
    folder = PureWindowsPath("C:\\ComfyUI\\output")
    longest = 259 - len(str(folder)) - 1
    require_short_path(folder / ("x" * longest), limited=True)
    require_short_path(folder / ("🎨" * (longest // 2)), limited=True)  # two units of UTF-16 each
    for name, excess in (("x" * (longest + 1), 1), ("🎨" * longest, longest)):
        with pytest.raises(UserError, match=f"{excess} characters shorter") as caught:
            require_short_path(folder / name, limited=True)
        assert caught.value.kind == "path"
        require_short_path(folder / name, limited=False)


def test_the_longest_path_of_a_run_is_the_longest_one_written(tmp_path: Path) -> None:
    from trainer.runs.run_folder import RunFolder

    run = RunFolder(tmp_path / "name-0123456789abcdef", "n" * 200)
    others = (run.config, run.events, run.log, run.lora, run.loss_curve, run.result, run.checkpoints / "step-000000" / "state.json")
    assert all(len(str(run.longest)) > len(str(path)) for path in others)


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: devices and pipes are POSIX")
def test_read_regular_rejects_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(11))
    for name in ("pipe", "zero", "large", "."):
        with pytest.raises(OSError, match=r"device|more than"):
            read_regular(tmp_path / name, 10)
    (tmp_path / "link").symlink_to(tmp_path / "large")
    assert read_regular(tmp_path / "link", 11) == bytes(11)


def test_a_file_replaced_by_a_pipe_after_the_check_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("NOT CHECKED: no pipes on this system")
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    status = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(OSError, match="device"):
        read_regular(tmp_path / "pipe", 10)


@pytest.mark.skipif(os.name == "nt", reason="Windows' home folders lie beside each other: every user has one, there or not")
def test_a_missing_home_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuchuser"):
        expand_home("~nosuchuser/pictures")
    assert expand_home("~/x") == Path.home() / "x" and expand_home("a~b/~c") == Path("a~b/~c")


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


def test_safe_name_keeps_letters_of_every_script() -> None:
    for text in ("Mein Stil ü", "絵柄 その1", "стиль", "スタイル", "it's (v2) [final]", "🎨 brush"):
        assert safe_name(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("character", ["a", "é", "猫", "🎨", "👩‍🎨"])
def test_a_long_name_is_cut_between_characters(character: str) -> None:
    name = safe_name(character * 250)
    assert len((name + ".safetensors").encode("utf-8")) <= 255
    assert name == (character * 250)[: len(name)]


def test_an_empty_name_becomes_the_fallback() -> None:
    for text in ("", " ", "...", ". .", "\ud800"):
        assert safe_name(text, fallback="nameless") == "nameless"


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two folders that may be read, beside a file that may not."""
    for name in ("input", "output"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / f"{name}.png").touch()
    (tmp_path / "secret.txt").touch()
    (tmp_path / "input-of-another").mkdir()
    return [tmp_path / "input", tmp_path / "output"]


def test_a_relative_path_is_found_below_any_root(roots: list[Path]) -> None:
    assert resolve_below("sub/output.png", roots) == roots[1] / "sub" / "output.png"
    assert resolve_below("sub/../sub/input.png", roots) == roots[0] / "sub" / "input.png"
    assert resolve_below(roots[1] / "sub", roots) == roots[1] / "sub"


@pytest.mark.parametrize("path", ["../secret.txt", "sub/../../secret.txt", "../input-of-another", "..", "sub/../.."])
def test_a_path_out_of_the_roots_is_rejected(roots: list[Path], path: str) -> None:
    with pytest.raises(UserError, match="outside") as caught:
        resolve_below(path, roots)
    assert caught.value.kind == "path"


def test_an_absolute_path_elsewhere_is_rejected(roots: list[Path]) -> None:
    for path in (roots[0].parent / "secret.txt", Path(os.path.abspath(os.sep)), roots[0].parent / "input-of-another"):
        with pytest.raises(UserError, match="outside"):
            resolve_below(path, roots)


@pytest.mark.skipif(os.name == "nt", reason="making links needs a right there")
def test_links_are_resolved_before_the_check(roots: list[Path]) -> None:
    (roots[0] / "way-out").symlink_to(roots[0].parent)
    (roots[0] / "to-other-root").symlink_to(roots[1])
    (roots[0] / "loop").symlink_to(roots[0] / "loop")
    with pytest.raises(UserError, match="outside"):
        resolve_below("way-out/secret.txt", roots)
    with pytest.raises(UserError, match="not found"):
        resolve_below("loop", roots)
    assert resolve_below("to-other-root/sub", roots) == roots[1] / "sub"


@pytest.mark.parametrize("path", ["nothing.png", "a\x00b", "x" * 5000, "sub/input.png/deeper", "sub\x00/../../secret.txt"])
def test_a_missing_path_is_an_error_with_the_searched_folders(roots: list[Path], path: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_below(path, roots, what="image folder")
    assert "image folder" in caught.value.message
    assert caught.value.kind == "path"


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


@pytest.mark.parametrize("path", ["\\\\evil\\share\\x", "//evil/share/x", "\\\\?\\UNC\\evil\\share\\x", "\\\\.\\pipe\\x", "//evil/share"])
def test_a_network_drive_counts_as_another_machine_unless_comfyui_is_on_it(path: str) -> None:
    local, remote = PureWindowsPath("C:\\ComfyUI\\input"), PureWindowsPath("\\\\NAS\\media\\ComfyUI")
    assert on_another_machine(PureWindowsPath(path), [local, remote])
    assert on_another_machine(local / path, [local])  # joined, it takes the place of what is before it
    assert not on_another_machine(PureWindowsPath("//nas/MEDIA/ComfyUI/input"), [local, remote])
    assert not on_another_machine(local / "cats", [local])


@pytest.mark.skipif(os.name != "nt", reason="NOT CHECKED: only Windows asks other machines for a path")
@pytest.mark.parametrize("path", ["\\\\evil\\share\\x", "//evil/share/x", "\\\\?\\UNC\\evil\\share\\x"])
def test_other_machines_are_not_accessed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accessed: list[str] = []

    def watched(look: Any) -> Any:
        def wrapper(path: Path, **named: Any) -> Any:
            accessed.append(str(path))
            return look(path, **named)

        return wrapper

    for name in ("resolve", "exists"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    with pytest.raises(UserError, match="lies outside"):
        resolve_below(path, [tmp_path])
    assert accessed and not [each for each in accessed if "evil" in each]
