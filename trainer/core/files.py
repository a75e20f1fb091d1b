"""Files: the one place that writes atomically, and that reads what may be no file at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from .errors import UserError
from .long_work import report

_BUSY_SECONDS = 5.0
PARTIAL = ".partial-"  # how every file and folder that is being written begins

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` is left as it was. A killed process leaves it, so it has no name that a
    menu of models or a reader of images would take for a whole file: it ends in ``.tmp``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}{path.suffix}.tmp")
    # With the mode of an ordinary file: the system takes the umask off it. To ask for the umask is to change it, for all threads.
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        error.filename = str(path)  # nobody asked for the other
        raise
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except Exception as error:
        if getattr(error, "filename", None) in (None, str(temporary)):  # libraries' own errors have none, too
            with suppress(AttributeError):
                error.filename, error.filename2 = str(path), None  # type: ignore[attr-defined]
        raise
    finally:
        unlink_partial(temporary)


def replace(source: Path, target: Path) -> None:
    """``os.replace``, which waits on Windows for who has one of the files open."""
    when_free(lambda: os.replace(source, target))


def when_free(action: Callable[[], T]) -> T:
    """What ``action`` on a file returns. On Windows a virus scanner or a sync client that looks at a file makes it fail for a moment.

    That is waited for; PermissionError is raised where it takes longer than seconds.
    """
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return action()
        except PermissionError:
            if sys.platform == "win32" and time.monotonic() < end:
                time.sleep(0.05)
                continue
            raise


def move_new(source: Path, target: Path) -> None:
    """Move a file within one file system to a name that is free, in one step. Raises FileExistsError, and OSError (EXDEV) across two."""
    if sys.platform == "win32":
        when_free(lambda: os.rename(source, target))  # fails where ``target`` is there
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.EXDEV, errno.ENOENT):
            raise
        # a file system without hard links, as exFAT. Of the processes of this machine one moves at a time.
        lock = Path(tempfile.gettempdir()) / f"animelora-move-{os.getuid()}.lock"
        with FileLock(str(lock)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            os.replace(source, target)
        return
    source.unlink()


def write_atomic(path: Path, data: bytes | str) -> None:
    r"""Write ``data`` (text as UTF-8, newlines unchanged) to ``path`` so that a reader never sees half of it.

    Half a character (a lone surrogate, as names of files and JSON may hold them) is written as ``\ud800``, which JSON reads as the same.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def remove_partial(*folders: Path) -> None:
    """Delete what a killed process left half written in ``folders``, where no other process may be writing now."""
    for path in (path for folder in folders for path in folder.glob(f"{PARTIAL}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            unlink_partial(path)


def unlink_partial(path: Path) -> None:
    """Delete a half-written file. One that another program has open stays on Windows until the next time; nothing fails for it."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise


def open_regular(path: str | Path) -> int:
    """A file handle (as of ``os.open``) for reading a regular file, links followed; the caller closes it.

    Raises OSError for a device, a pipe or a folder: they are not opened, because a pipe may wait for ever and a device may act on it.
    """
    _require_regular(os.stat(path))
    # between the two the file may be replaced by a pipe: O_NONBLOCK opens that without waiting
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return handle


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a folder, not a file")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, links followed.

    Raises OSError for a device or a pipe, which may never end, and for more than ``limit`` bytes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)  # a file may grow while it is read
    if size > limit or len(data) > limit:
        raise OSError(errno.EFBIG, f"the file is {max(size, len(data)) >> 20} MB long, more than {limit >> 20}")
    return data


def is_link(path: Path) -> bool:
    """Whether ``path`` is a symbolic link or a junction."""
    if sys.platform == "win32" and path.exists():
        return path.is_symlink() or path.lstat().st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT
    return path.is_symlink()


def require_own_file(path: Path) -> None:
    """Refuse ``path``, to which is appended, where something else than a file of our own stands: a link would lead the writing elsewhere,
    a pipe would never take it. Raises UserError."""
    try:
        status = path.lstat()
    except OSError:
        return
    if is_link(path) or not stat.S_ISREG(status.st_mode):
        what = "a link" if is_link(path) else "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UserError(f"{path} is {what}, not a file.", "Remove it, and start again.", kind="path")


def file_stamp(path: str | Path) -> str:
    """Changes whenever ``path`` is written or replaced, even by a file of the same size and modification time.

    That is so where the system counts changes of a file itself (``st_ctime``, not on Windows). Raises OSError.
    """
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def sha256_file(path: Path) -> str:
    """The SHA-256 of a regular file's bytes, in hex. Raises OSError for a device or a pipe, too."""
    with os.fdopen(open_regular(path), "rb") as file:
        digest, done, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            report(f"hashing {path.name}", done, size)
    return digest.hexdigest()
