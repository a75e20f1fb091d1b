"""Archives as sources: unpacked like a folder, without trusting them."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.tools.hostile import raw_tar
from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS
from trainer.core.errors import Cancelled, UserError
from trainer.dataset import prepare_dataset
from trainer.dataset.reading import archive


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    drawing(seed).save(buffer, "PNG")
    return buffer.getvalue()


def captions(source: Path, out: Path) -> list[str]:
    return [item.caption for item in prepare_dataset(source, out, SETTINGS).dataset.items]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archive_equals_folder(tmp_path: Path, suffix: str) -> None:
    folder = folder_of(tmp_path / "pictures" / "10_mk01 girl", 3)
    (folder / "1.txt").write_text("smile", encoding="utf-8")
    kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tar.bz2": "bztar", ".tar.xz": "xztar"}[suffix]
    made = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "pictures"))
    from_archive = prepare_dataset(made, tmp_path / "a", SETTINGS).dataset
    from_folder = prepare_dataset(tmp_path / "pictures", tmp_path / "b", SETTINGS).dataset
    assert from_archive.hash == from_folder.hash
    assert [item.repeats for item in from_archive.items] == [10, 10, 10]
    assert not list(from_archive.path.glob(".prepare/unpacked*")), "the unpacked copy is gone"


@pytest.mark.parametrize("tool", ["zip", "tar"])
def test_archives_of_system_tools_are_read(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    folder_of(tmp_path / "in", 2)
    command = ["zip", "-qr", "../a.zip", "."] if tool == "zip" else ["tar", "czf", "../a.tgz", "."]
    subprocess.run(command, cwd=tmp_path / "in", check=True)
    assert captions(next(tmp_path.glob("a.*")), tmp_path / "out") == ["mk01 girl", "mk01 girl"]


@pytest.mark.parametrize("name", ["../evil.png", "/abs/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "C:evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_outside_the_archive_are_rejected(tmp_path: Path, name: str, kind: str) -> None:
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
    result = prepare_dataset(made, tmp_path / "out", SETTINGS)
    assert result.kept == 1
    assert [rejection.reason for rejection in result.rejected] == ["unsafe path"]
    assert {path for path in tmp_path.parent.rglob("*evil*")} == before
    assert not Path("/abs/evil.png").exists()


def test_links_in_a_tar_are_rejected(tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    with tarfile.open(made, "w") as tar:
        info = tarfile.TarInfo("good.png")
        info.size = len(png(1))
        tar.addfile(info, io.BytesIO(png(1)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    result = prepare_dataset(made, tmp_path / "out", SETTINGS)
    assert result.kept == 1 and "a link or device" in result.rejected[0].message


def test_member_over_the_size_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 200_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.png", png(1))
        file.writestr("bomb.bmp", bytes(10_000_000))
    result = prepare_dataset(tmp_path / "a.zip", tmp_path / "out", SETTINGS)
    assert [(r.source, r.reason) for r in result.rejected] == [("bomb.bmp", "bomb")]
    assert result.kept == 1


def test_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.bmp", bytes(10_000_000))
    with pytest.raises(UserError, match="unpacks to more than"):
        prepare_dataset(tmp_path / "a.zip", tmp_path / "out", SETTINGS)


def test_damaged_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="damaged"):
        prepare_dataset(tmp_path / "a.zip", tmp_path / "out", SETTINGS)


def test_damaged_member_does_not_end_the_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as file:
        file.writestr("0.png", png(0))
        file.writestr("1.png", png(1))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[200] ^= 0xFF  # inside the first member: its checksum no longer fits
    (tmp_path / "a.zip").write_bytes(bytes(data))
    result = prepare_dataset(tmp_path / "a.zip", tmp_path / "out", SETTINGS)
    assert result.kept == 1 and result.rejected[0].source == "0.png"


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def sources_and_captions(source: Path, out: Path) -> dict[str, str]:
    dataset = prepare_dataset(source, out, SETTINGS).dataset
    return {row["source"]: row["caption"] for row in dataset.rows()}


def test_long_names_keep_their_extension_and_their_caption(tmp_path: Path) -> None:
    long, longer = "初音ミク" * 20, "x" * (100 if os.name == "nt" else 205)  # Windows limits whole paths
    members = {f"{long}.png": png(1), f"{long}.caption": b"miku", f"{longer}.png": png(2), f"{longer}.png.txt": b"ex"}
    made = zipped(tmp_path / "a.zip", members)
    assert sorted(sources_and_captions(made, tmp_path / "out").values()) == ["mk01, ex", "mk01, miku"]


def test_equal_safe_names_get_numbers_with_their_captions(tmp_path: Path) -> None:
    members = {
        "what?.png": png(1), "what*.txt": b"second", "what*.png": png(2), "what?.txt": b"first",
        "a?/b.png": png(3), "a*/b.png": png(4), "a*/b.txt": b"fourth", "a*/metadata.jsonl": b"{}",
        "what_.jpg": png(5), "what_.caption": b"fifth",
    }  # fmt: skip
    assert sources_and_captions(zipped(tmp_path / "a.zip", members), tmp_path / "out") == {
        "what_.png": "mk01, first", "what__2.png": "mk01, second", "what__3.jpg": "mk01, fifth",
        "a_/b.png": "mk01 girl", "a__2/b.png": "mk01, fourth",
    }  # fmt: skip


def test_hidden_members_are_skipped_as_in_a_folder(tmp_path: Path) -> None:
    members = {"./ok.png": png(1), ".thumbs/t.png": png(2), "a/._p.png": b"junk", "__MACOSX/a/q.png": png(3), ".png": png(4)}
    result = prepare_dataset(zipped(tmp_path / "a.zip", members), tmp_path / "out", SETTINGS)
    assert ([row["source"] for row in result.dataset.rows()], result.rejected) == (["ok.png"], ())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_member_of_each_compression_is_rejected(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("0.png", png(0))
        file.writestr("1.png", png(1))
        size = file.getinfo("0.png").compress_size
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60 : 35 + size] = bytes(b ^ 0xFF for b in data[60 : 35 + size])  # the compressed bytes, not the headers
    (tmp_path / "a.zip").write_bytes(bytes(data))
    result = prepare_dataset(tmp_path / "a.zip", tmp_path / "out", SETTINGS)
    assert result.kept == 1
    assert [(r.source, r.reason) for r in result.rejected] == [("0.png", "unreadable")]
    assert "damaged in the archive" in result.rejected[0].message


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("named", [True, False])
def test_tar_headers_are_limited_in_size(tmp_path: Path, kind: bytes, named: bool) -> None:
    made = raw_tar(
        tmp_path / "a.tar.gz", ("0.png", tarfile.REGTYPE, png(0)), ("x", kind, bytes(48 << 20)), ("1.png", tarfile.REGTYPE, png(1))
    )
    if not named:  # by content alone; the long header comes first
        made = raw_tar(tmp_path / "a", ("x", kind, bytes(48 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="longer than 1 MB" if named else "neither a folder nor"):
            prepare_dataset(made, tmp_path / "out", SETTINGS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20  # half of what the header claims


def test_global_tar_headers_are_limited_in_total(tmp_path: Path) -> None:
    def comment(number: int) -> bytes:
        body = f" key{number}=".encode() + b"x" * 600_000 + b"\n"
        return str(len(body) + 6).encode() + body

    made = raw_tar(tmp_path / "a.tar.gz", ("0.png", tarfile.REGTYPE, png(0)), *(("g", tarfile.XGLTYPE, comment(n)) for n in range(4)),
                   ("1.png", tarfile.REGTYPE, png(1)))  # fmt: skip
    with pytest.raises(UserError, match="longer than 1 MB"):
        prepare_dataset(made, tmp_path / "out", SETTINGS)


def test_damaged_tar_header_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(png(number))
            file.addfile(info, io.BytesIO(png(number)))
        second = file.getmember("1.png").offset
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[second + 100] ^= 1
    (tmp_path / "a.tar").write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        prepare_dataset(tmp_path / "a.tar", tmp_path / "out", SETTINGS)


def test_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"9.png": png(9)}).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in (("0.png", png(0)), ("readme.txt", inner)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    assert [row["source"] for row in prepare_dataset(tmp_path / "a.tar", tmp_path / "out", SETTINGS).dataset.rows()] == ["0.png"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_unpacking_can_be_cancelled(tmp_path: Path, name: str) -> None:
    """In the middle of one large member that is not even wanted, too."""
    folder_of(tmp_path / "in", 1)
    (tmp_path / "in" / ("2.bmp" if name == "a.zip" else "2.mp4")).write_bytes(bytes(8 << 20))
    made = Path(shutil.make_archive(str(tmp_path / "a"), name.removeprefix("a."), tmp_path / "in"))
    asked = 0

    def stop_later() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 6

    with pytest.raises(Cancelled):
        archive.unpack(made, tmp_path / "out", should_stop=stop_later)
    assert asked == 6


def test_full_disk_while_unpacking_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = zipped(tmp_path / "a.zip", {"0.png": png(0)})
    real = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if mode == "wb" and self.name == "0.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="No space left"):
        prepare_dataset(made, tmp_path / "out", SETTINGS)
