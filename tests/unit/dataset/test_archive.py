"""Archives made by the standard library and by tar and zip are read; hostile ones do no harm."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.unit.dataset.pictures import drawing, folder_of
from trainer.dataset import PrepareSettings, archive, prepare
from trainer.errors import UserError

SETTINGS = PrepareSettings(trigger="mk01", class_description="girl", resolution=64)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    drawing(seed).save(buffer, "PNG")
    return buffer.getvalue()


def captions(source: Path, out: Path) -> list[str]:
    return [item.caption for item in prepare(source, out, SETTINGS).dataset.items]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archive_equals_folder(tmp_path: Path, suffix: str) -> None:
    folder = folder_of(tmp_path / "pictures" / "10_mk01 girl", 3)
    (folder / "1.txt").write_text("smile", encoding="utf-8")
    kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tar.bz2": "bztar", ".tar.xz": "xztar"}[suffix]
    made = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "pictures"))
    from_archive = prepare(made, tmp_path / "a", SETTINGS).dataset
    from_folder = prepare(tmp_path / "pictures", tmp_path / "b", SETTINGS).dataset
    assert from_archive.hash == from_folder.hash
    assert [item.repeats for item in from_archive.items] == [10, 10, 10]
    assert not list(from_archive.path.glob(".prepare/unpacked*")), "the unpacked copy is gone"


@pytest.mark.parametrize("tool", ["zip", "tar"])
def test_archives_of_the_systems_own_tools(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    folder_of(tmp_path / "in", 2)
    command = ["zip", "-qr", "../a.zip", "."] if tool == "zip" else ["tar", "czf", "../a.tgz", "."]
    subprocess.run(command, cwd=tmp_path / "in", check=True)
    assert captions(next(tmp_path.glob("a.*")), tmp_path / "out") == ["mk01 girl", "mk01 girl"]


@pytest.mark.parametrize("name", ["../evil.png", "/abs/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "C:evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_archive_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    made = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as file:
            file.writestr("good.png", png(1))
            info = zipfile.ZipInfo("x")
            info.filename = name  # writestr would tidy it
            file.writestr(info, png(2))
    else:
        with tarfile.open(made, "w") as tar:
            for member, data in (("good.png", png(1)), (name, png(2))):
                info_ = tarfile.TarInfo(member)
                info_.size = len(data)
                tar.addfile(info_, io.BytesIO(data))
    before = {path for path in tmp_path.parent.rglob("*evil*")}
    result = prepare(made, tmp_path / "out", SETTINGS)
    assert result.kept == 1
    assert [rejection.reason for rejection in result.rejected] == ["unsafe path"]
    assert {path for path in tmp_path.parent.rglob("*evil*")} == before
    assert not Path("/abs/evil.png").exists()


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    with tarfile.open(made, "w") as tar:
        info = tarfile.TarInfo("good.png")
        info.size = len(png(1))
        tar.addfile(info, io.BytesIO(png(1)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    result = prepare(made, tmp_path / "out", SETTINGS)
    assert result.kept == 1 and "a link or device" in result.rejected[0].message


def test_member_that_unpacks_to_too_much_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 200_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.png", png(1))
        file.writestr("bomb.bmp", bytes(10_000_000))
    result = prepare(tmp_path / "a.zip", tmp_path / "out", SETTINGS)
    assert [(r.source, r.reason) for r in result.rejected] == [("bomb.bmp", "bomb")]
    assert result.kept == 1


def test_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.bmp", bytes(10_000_000))
    with pytest.raises(UserError, match="unpacks to more than"):
        prepare(tmp_path / "a.zip", tmp_path / "out", SETTINGS)


def test_damaged_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="damaged"):
        prepare(tmp_path / "a.zip", tmp_path / "out", SETTINGS)


def test_damaged_member_does_not_end_the_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as file:
        file.writestr("0.png", png(0))
        file.writestr("1.png", png(1))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[200] ^= 0xFF  # inside the first member: its checksum no longer fits
    (tmp_path / "a.zip").write_bytes(bytes(data))
    result = prepare(tmp_path / "a.zip", tmp_path / "out", SETTINGS)
    assert result.kept == 1 and result.rejected[0].source == "0.png"


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def sources_and_captions(source: Path, out: Path) -> dict[str, str]:
    dataset = prepare(source, out, SETTINGS).dataset
    return {row["source"]: row["caption"] for row in dataset.rows()}


def test_long_names_keep_their_extension_and_their_caption(tmp_path: Path) -> None:
    long = "初音ミク" * 20
    members = {f"{long}.png": png(1), f"{long}.caption": b"miku", "x" * 205 + ".png": png(2), "x" * 205 + ".png.txt": b"ex"}
    made = zipped(tmp_path / "a.zip", members)
    assert sorted(sources_and_captions(made, tmp_path / "out").values()) == ["mk01, ex", "mk01, miku"]


def test_names_that_become_the_same_are_numbered_with_their_captions(tmp_path: Path) -> None:
    members = {
        "what?.png": png(1), "what*.txt": b"second", "what*.png": png(2), "what?.txt": b"first",
        "a?/b.png": png(3), "a*/b.png": png(4), "a*/b.txt": b"fourth", "a*/metadata.jsonl": b"{}",
        "what_.jpg": png(5), "what_.caption": b"fifth",
    }  # fmt: skip
    assert sources_and_captions(zipped(tmp_path / "a.zip", members), tmp_path / "out") == {
        "what_.png": "mk01, first", "what__2.png": "mk01, second", "what__3.jpg": "mk01, fifth",
        "a_/b.png": "mk01 girl", "a__2/b.png": "mk01, fourth",
    }  # fmt: skip


def test_hidden_members_are_passed_over_as_in_a_folder(tmp_path: Path) -> None:
    members = {"./ok.png": png(1), ".thumbs/t.png": png(2), "a/._p.png": b"junk", "__MACOSX/a/q.png": png(3), ".png": png(4)}
    result = prepare(zipped(tmp_path / "a.zip", members), tmp_path / "out", SETTINGS)
    assert ([row["source"] for row in result.dataset.rows()], result.rejected) == (["ok.png"], ())
