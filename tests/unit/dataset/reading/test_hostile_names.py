"""Names in archives that would take vast time or memory, or that the system cannot store."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tests.tools.hostile import raw_tar
from trainer.dataset.reading import archive

DATA = b"content"


def packed(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, DATA)
    return path


@pytest.mark.parametrize(
    "name",
    ["a" + ".txt" * 250_000, "a/" * 400_000 + "b.png", "x" * 900_000 + ".mp4", "." + "x" * 900_000],
    ids=["extensions", "folders", "of another kind", "hidden"],
)
def test_member_with_a_vast_name_is_rejected_by_the_start_of_its_name(tmp_path: Path, name: str) -> None:
    """Before, time and memory grew with the square of the number of parts of a name. A compressed name of a megabyte is small."""
    header = name.encode()
    made = raw_tar(tmp_path / "a.tar.gz", ("x", b"L", header + b"\0"), ("x", b"0", DATA), ("good.txt", b"0", DATA))
    result = archive.unpack(made, tmp_path / "out")
    assert result.rejected == [(f"{name[:100]}…", "unsafe path", "its path has more than 1000 characters")]
    assert result.others == []
    assert [path.name for path in result.folder.rglob("*")] == ["good.txt"]


def test_thousands_of_members_with_one_safe_name_get_numbers_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0
    folded = archive._folded

    def counting(name: str) -> str:
        nonlocal tried
        tried += 1
        return folded(name)

    monkeypatch.setattr(archive, "_folded", counting)
    count = 500
    made = packed(tmp_path / "a.zip", [f"a{'?' * number}.txt" for number in range(1, count + 1)])
    result = archive.unpack(made, tmp_path / "out")
    assert len(list(result.folder.iterdir())) == count and result.rejected == []
    assert tried < 5 * count


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: paths of Windows are limited in characters; see the next test")
def test_member_whose_path_is_too_long_for_the_system_is_rejected_by_name(tmp_path: Path) -> None:
    deep = "/".join(["猫" * 60] * 16) + "/a.txt"  # 982 characters, 2,900 bytes
    root = tmp_path
    while len(str(root)) < 1500:
        root /= "d" * 200
    root.mkdir(parents=True)
    result = archive.unpack(packed(tmp_path / "a.zip", [deep, "good.txt"]), root)
    assert [(name, reason) for name, reason, _ in result.rejected] == [(deep, "unreadable")]
    assert "too long" in result.rejected[0][2]
    assert (result.folder / "good.txt").read_bytes() == DATA


def test_member_whose_path_is_too_long_for_windows_is_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.core.files.paths._has_short_paths", lambda: True)
    deep = "/".join(["d" * 50] * 6) + "/a.txt"
    result = archive.unpack(packed(tmp_path / "a.zip", [deep, "good.txt"]), tmp_path / "out")
    assert [(name, reason) for name, reason, _ in result.rejected] == [(deep, "unreadable")]
    assert "Windows allows 259" in result.rejected[0][2]
    assert (result.folder / "good.txt").read_bytes() == DATA
