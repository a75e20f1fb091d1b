"""Read files that may turn out to be a pipe, a device, a link or far too large."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

from ..errors import UserError
from ..work.progress import report_progress


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
            report_progress(f"hashing {path.name}", done, size)
    return digest.hexdigest()
