"""Unpacking a zip or tar archive of pictures without trusting it."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from ...core.errors import Cancelled, UserError
from ...core.files.paths import safe_name
from ..captions.sidecars import DATA, LOOKS_LIKE_CAPTIONS
from ..images.decode import EXTENSIONS
from . import tar
from .surrogates import replace_surrogates
from .walk import is_ignored

MAX_MEMBERS = 2_000_000
MAX_MEMBER_BYTES = 1 << 30
MAX_TOTAL_BYTES = 500 << 30
KEEP_FREE_BYTES = 1 << 30
_MOST_NAMED = 10_000  # members that are not read
_TEXT = {".json", ".jsonl", ".csv", ".toml"} | LOOKS_LIKE_CAPTIONS | DATA
_FOLDS_CASE = sys.platform in ("win32", "darwin")  # A.png and a.png are one file there
_SUFFIXES = (".zip", ".cbz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass
class UnpackedArchive:
    """Where the members lie, which were refused: (name, reason, message), and ``others``: those that are neither image nor caption."""

    folder: Path
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def is_archive(path: Path) -> bool:
    """By name, or by content when the name says nothing."""
    if path.suffix.lower() in EXTENSIONS:
        return False
    return path.name.lower().endswith(_SUFFIXES) or _is_zip(path) or tar.is_tar(path)


def unpack(path: Path, folder: Path, *, captions: Sequence[str] = (), should_stop: Callable[[], bool] | None = None) -> UnpackedArchive:
    """Unpack pictures and captions below ``folder``, which is emptied first. ``captions``: extensions of captions beside the usual ones.

    Only regular files with names that stay inside are written; sizes are counted while writing, because headers lie.
    Raises UserError when the archive as a whole cannot be used, and Cancelled when ``should_stop`` returned True.
    """

    def check() -> None:
        if should_stop is not None and should_stop():
            raise Cancelled("Unpacking the archive was stopped.")

    shutil.rmtree(folder, ignore_errors=True)
    # the archive's own name keeps its meaning: 10_trigger class.zip
    root = folder / safe_name(path.name.split(".")[0] or path.stem)
    root.mkdir(parents=True)
    result = UnpackedArchive(root)
    wanted = EXTENSIONS | _TEXT | set(captions)
    names = _Names(root, wanted)
    budget = min(MAX_TOTAL_BYTES, shutil.disk_usage(folder).free - KEEP_FREE_BYTES)
    try:
        for number, (name, stream, problem) in enumerate(_members(path, wanted, check, result.others)):
            if number >= MAX_MEMBERS:
                raise UserError(f"{path.name} has more than {MAX_MEMBERS} members.", "Split it.", kind="dataset")
            target = None if problem else names.target(name)
            if problem or target is None:
                result.rejected.append((name, "unsafe path" if not problem else "unreadable", problem or "its path leaves the archive"))
                continue
            assert stream is not None
            try:
                with stream:
                    written = _copy(stream, target, min(MAX_MEMBER_BYTES, budget), check)
            except _Damaged as error:
                target.unlink(missing_ok=True)
                result.rejected.append((name, "unreadable", f"damaged in the archive: {error}"))
                continue
            if written < 0:
                target.unlink(missing_ok=True)
                if budget <= MAX_MEMBER_BYTES:
                    raise UserError(
                        f"{path.name} unpacks to more than the {budget >> 20} MB that are free.", "Make room, or unpack it elsewhere.",
                        kind="dataset",
                    )  # fmt: skip
                result.rejected.append((name, "bomb", f"unpacks to more than {MAX_MEMBER_BYTES >> 20} MB"))
                continue
            budget -= written
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"The archive {path} is damaged: {error}.", "Download or pack it again.", kind="dataset") from error
    return result


def _members(path: Path, wanted: Set[str], check: Callable[[], None], others: list[str]) -> Iterator[tuple[str, IO[bytes] | None, str]]:
    """(name, open stream, problem) of the members that matter; the names of the ``others`` that are not hidden."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                check()
                if info.is_dir() or not _matters(info.filename, wanted, others):
                    continue
                if info.flag_bits & 1:
                    raise UserError(f"{path.name} is protected by a password.", "Unpack it and give the folder.", kind="dataset")
                if (info.external_attr >> 28) == 0xA:
                    yield info.filename, None, "a link, not a file"
                    continue
                try:
                    stream = archive.open(info)
                except Exception as error:  # BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ...
                    yield info.filename, None, f"damaged in the archive: {error}"
                else:
                    yield info.filename, stream, ""
        return
    for member, content in tar.members(path, check):
        if not member.isdir() and _matters(member.name, wanted, others):
            yield member.name, content, "" if content is not None else "a link or device, not a file"


def _is_zip(path: Path) -> bool:
    """A tar archive whose last member is a zip archive ends like one, too."""
    return zipfile.is_zipfile(path) and not tar.is_tar(path)


def _matters(name: str, wanted: Set[str], others: list[str]) -> bool:
    parts = _parts(name)
    if not parts or any(is_ignored(part) for part in parts if part != ".."):
        return False
    if PurePosixPath(parts[-1]).suffix.lower() in wanted:
        return True
    if len(others) < _MOST_NAMED:
        others.append(replace_surrogates(name))
    return False


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


class _Names:
    """Where members go. Two names that become the same when they are cleaned get numbers: a picture and its text the same one."""

    def __init__(self, root: Path, wanted: Set[str]) -> None:
        self._root = root
        self._wanted = wanted
        self._given: dict[tuple[str, ...], str] = {}
        self._taken: set[tuple[Path, str]] = set()

    def target(self, name: str) -> Path | None:
        """The member's path: None when its name would leave the archive."""
        parts = _parts(name)
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
            return None
        folder = self._root
        for depth in range(1, len(parts)):
            folder /= self._unique(folder, tuple(parts[:depth]))
        stem, suffix = _split(parts[-1], self._wanted)
        return folder / (self._unique(folder, (*parts[:-1], stem)) + suffix)

    def _unique(self, folder: Path, original: tuple[str, ...]) -> str:
        if original not in self._given:
            clean = safe_name(replace_surrogates(original[-1]), limit=200)
            name, number = clean, 1
            while (folder, _folded(name)) in self._taken:
                number += 1
                name = f"{clean}_{number}"
            self._taken.add((folder, _folded(name)))
            self._given[original] = name
        return self._given[original]


def _split(name: str, wanted: Set[str]) -> tuple[str, str]:
    """The stem and the extensions that matter: ``a.png.txt`` is the text of ``a.png``."""
    stem, suffix = name, ""
    while (last := PurePosixPath(stem).suffix) and last.lower() in wanted:
        stem, suffix = stem.removesuffix(last), last + suffix
    return stem, suffix


def _folded(name: str) -> str:
    return name.lower() if _FOLDS_CASE else name


class _Damaged(Exception):
    """A member's content cannot be read."""


def _copy(stream: IO[bytes], target: Path, limit: int, check: Callable[[], None]) -> int:
    """Bytes written, or -1 when there are more than ``limit``. Raises _Damaged; UserError when ``target`` cannot be written."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while chunk := _read(stream):
                check()
                written += len(chunk)
                if written > limit:
                    return -1
                file.write(chunk)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written while the archive is unpacked: {error.strerror or error}.",
            "Make room, or choose another output folder.",
            kind="dataset",
        ) from error
    return written


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(1 << 20)
    except (Cancelled, UserError):
        raise
    except Exception as error:  # zlib.error, LZMAError, ZstdError, BadZipFile, OSError, EOFError, ... share no base
        raise _Damaged(str(error) or type(error).__name__) from error
