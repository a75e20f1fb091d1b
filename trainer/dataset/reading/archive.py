"""Unpack a zip or tar archive of images without trusting it."""

from __future__ import annotations

import errno
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from ...core.errors import Cancelled, UserError
from ...core.files.paths import require_short_path, safe_name
from ...core.messages import File, Message
from ..captions.sidecars import DATA, LOOKS_LIKE_CAPTIONS
from ..images.decode import EXTENSIONS
from . import tar
from .surrogates import replace_surrogates
from .walk import is_ignored

MAX_MEMBERS = 2_000_000
MAX_MEMBER_BYTES = 1 << 30
MAX_TOTAL_BYTES = 500 << 30
KEEP_FREE_BYTES = 1 << 30
_MAX_OTHERS = 10_000  # names of members that are not read
_LONGEST_NAME = 1000  # characters of a member's path; no system allows many more
_TEXT = {".json", ".jsonl", ".csv", ".toml"} | LOOKS_LIKE_CAPTIONS | DATA
_FOLDS_CASE = sys.platform in ("win32", "darwin")  # where A.png and a.png are the same file
_SUFFIXES = (".zip", ".cbz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass
class UnpackedArchive:
    """``rejected``: (name, reason, message) of members. ``others``: names of members that are neither images nor captions."""

    folder: Path
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def is_archive(path: Path) -> bool:
    """Whether ``path`` is an archive, by its name or its content."""
    if path.suffix.lower() in EXTENSIONS:
        return False
    return path.name.lower().endswith(_SUFFIXES) or _is_zip(path) or tar.is_tar(path)


def unpack(path: Path, folder: Path, *, captions: Sequence[str] = (), should_stop: Callable[[], bool] | None = None) -> UnpackedArchive:
    """Unpack images and captions below ``folder``, which is emptied first. ``captions``: further extensions of caption files.

    Only regular files whose names stay inside ``folder`` are written. Sizes are counted while writing, because headers may be wrong.
    Raises UserError when the archive as a whole cannot be used, and Cancelled when ``should_stop`` returned True.
    """

    def check() -> None:
        if should_stop is not None and should_stop():
            raise Cancelled("Unpacking the archive was stopped.")

    shutil.rmtree(folder, ignore_errors=True)
    # the name of the archive has a meaning, such as 10_trigger class.zip
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
            if len(name) > _LONGEST_NAME:
                result.rejected.append((f"{name[:100]}…", "unsafe path", f"its path has more than {_LONGEST_NAME} characters"))
                continue
            target = None if problem else names.target(name)
            if stream is None or target is None:
                reason = "unreadable" if problem else "unsafe path"
                result.rejected.append((name, reason, problem or "its path leads out of the archive"))
                continue
            try:
                budget -= _write(stream, target, min(MAX_MEMBER_BYTES, budget), check)
            except _Unusable as error:
                result.rejected.append((name, "unreadable", str(error)))
            except _TooLarge:
                if budget <= MAX_MEMBER_BYTES:
                    raise UserError(
                        f"{path.name} unpacks to more than the {budget >> 20} MB that are free.",
                        "Make room on the disk, or unpack it elsewhere.",
                        kind="dataset",
                    ) from None
                result.rejected.append((name, "bomb", f"unpacks to more than {MAX_MEMBER_BYTES >> 20} MB"))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            Message("The archive ", File(str(path)), f" is damaged: {error}."), "Download or pack it again.", kind="dataset"
        ) from error
    return result


def _members(path: Path, wanted: Set[str], check: Callable[[], None], others: list[str]) -> Iterator[tuple[str, IO[bytes] | None, str]]:
    """(name, open stream, problem) of members in ``wanted``; adds the names of others that are not hidden to ``others``."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                check()
                if info.is_dir() or not _is_wanted(info.filename, wanted, others):
                    continue
                if info.flag_bits & 1:
                    raise UserError(f"{path.name} is protected by a password.", "Unpack it and use the folder.", kind="dataset")
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
        if not member.isdir() and _is_wanted(member.name, wanted, others):
            yield member.name, content, "" if content is not None else "a link or device, not a file"


def _is_zip(path: Path) -> bool:
    """Whether it is a zip archive, not a tar archive whose last member is one, which ends in the same way."""
    return zipfile.is_zipfile(path) and not tar.is_tar(path)


def _is_wanted(name: str, wanted: Set[str], others: list[str]) -> bool:
    if len(name) > _LONGEST_NAME:
        return True  # it is rejected by name
    parts = _parts(name)
    if not parts or any(is_ignored(part) for part in parts if part != ".."):
        return False
    if PurePosixPath(parts[-1]).suffix.lower() in wanted:
        return True
    if len(others) < _MAX_OTHERS:
        others.append(replace_surrogates(name))
    return False


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


class _Names:
    """Paths for members. Names that become equal when they are made safe get numbers; an image and its caption get the same one."""

    def __init__(self, root: Path, wanted: Set[str]) -> None:
        self._root = root
        self._wanted = wanted
        self._given: dict[tuple[Path, str], str] = {}
        self._taken: set[tuple[Path, str]] = set()
        self._last_number: dict[tuple[Path, str], int] = {}

    def target(self, name: str) -> Path | None:
        """The path of a member; None when its name leads out of the archive."""
        parts = _parts(name)
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
            return None
        folder = self._root
        for part in parts[:-1]:
            folder /= self._unique(folder, part)
        stem, suffix = _split(parts[-1], self._wanted)
        return folder / (self._unique(folder, stem) + suffix)

    def _unique(self, folder: Path, original: str) -> str:
        if (folder, original) not in self._given:
            clean = safe_name(replace_surrogates(original), limit=200)
            name, number = clean, self._last_number.get((folder, clean), 1)
            while (folder, _folded(name)) in self._taken:
                number += 1
                name = f"{clean}_{number}"
            self._last_number[folder, clean] = number
            self._taken.add((folder, _folded(name)))
            self._given[folder, original] = name
        return self._given[folder, original]


def _split(name: str, wanted: Set[str]) -> tuple[str, str]:
    """(stem, extensions in ``wanted``): ``a.png.txt`` is the caption of ``a.png``."""
    stem, suffix = name, ""
    while (last := PurePosixPath(stem).suffix) and last.lower() in wanted:
        stem, suffix = stem.removesuffix(last), last + suffix
    return stem, suffix


def _folded(name: str) -> str:
    return name.lower() if _FOLDS_CASE else name


class _Unusable(Exception):
    """A member cannot be read, or not be written under its name; the message says why."""


class _TooLarge(Exception):
    """A member has more bytes than it may have."""


def _write(stream: IO[bytes], target: Path, limit: int, check: Callable[[], None]) -> int:
    """Write a member and return its number of bytes.

    Raises _Unusable and _TooLarge, after which ``target`` does not exist, and UserError when it cannot be written.
    """
    try:
        with stream:
            return _copy(stream, target, limit, check)
    except (_Unusable, _TooLarge):
        with suppress(OSError):  # its path may be too long to exist
            target.unlink()
        raise


def _copy(stream: IO[bytes], target: Path, limit: int, check: Callable[[], None]) -> int:
    written = 0
    try:
        require_short_path(target)
    except UserError as error:
        raise _Unusable(str(error)) from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while chunk := _read(stream):
                check()
                written += len(chunk)
                if written > limit:
                    raise _TooLarge
                file.write(chunk)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _Unusable("its path is too long for this system") from error
        raise UserError(
            Message(File(str(target)), f" cannot be written while the archive is unpacked: {error.strerror or error}."),
            "Make room on the disk, or choose another output folder.",
            kind="dataset",
        ) from error
    return written


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(1 << 20)
    except (Cancelled, UserError):
        raise
    except Exception as error:  # zlib.error, LZMAError, ZstdError, BadZipFile, OSError, EOFError, ... share no base
        raise _Unusable(f"damaged in the archive: {str(error) or type(error).__name__}") from error
