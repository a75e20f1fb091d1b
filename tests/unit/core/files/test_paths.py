"""Where a path may lie, how long it may be, and which files are read."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from trainer.core.errors import UserError
from trainer.core.files.paths import expand_home, on_another_machine, require_short_path, resolve_below
from trainer.core.files.reading import read_regular


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


def test_reading_takes_the_memory_of_the_file_not_of_the_limit(tmp_path: Path) -> None:
    """Windows sets memory aside when it is asked for, not when it is used."""
    (tmp_path / "small").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert read_regular(tmp_path / "small", 256 << 20) == b"x" * 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("limit", [10, 5_000_000])
def test_a_file_that_grows_meanwhile_is_read_to_its_end_or_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 5)
    status = os.stat(path)
    path.write_bytes(b"a" * 3_000_000)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    if limit > 3_000_000:
        assert len(read_regular(path, limit)) == 3_000_000
    else:
        with pytest.raises(OSError, match="more than"):
            read_regular(path, limit)


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
