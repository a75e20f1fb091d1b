"""Reading and hashing files that may turn out to be a pipe, a device, a link or far too large."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

from ..errors import UserError
from ..messages import File, Message
from ..work.progress import report_progress

_STEP = 1 << 20  # bytes


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its handle (as ``os.open`` does); the caller closes it. Links are followed.

    Raises OSError for a device, a pipe or a folder without opening it: a pipe may block forever, and a device may react.
    """
    _require_regular(os.stat(path))
    # the file may be replaced by a pipe in between, which O_NONBLOCK opens without waiting
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return handle


def require_regular(path: str | Path) -> None:
    """Raise OSError unless ``path`` is a regular file or a link to one. For libraries that open files themselves."""
    _require_regular(os.stat(path))


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a folder, not a file")


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file, following links. Raises OSError for devices and pipes, and for more than ``limit`` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # not read(limit), for which Windows sets all of that memory aside
        data = b"" if size > limit else file.read(size)
        while size <= limit and len(data) <= limit and (more := file.read(_STEP)):  # the file grows meanwhile
            data += more
    if size > limit or len(data) > limit:
        raise OSError(errno.EFBIG, f"the file is {max(size, len(data)) >> 20} MB long, more than {limit >> 20}")
    return data


def is_link(path: Path) -> bool:
    """Whether ``path`` is a symbolic link or a junction."""
    if sys.platform == "win32" and path.exists():
        return path.is_symlink() or path.lstat().st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT
    return path.is_symlink()


def require_own_file(path: Path) -> None:
    """Raise UserError if ``path``, a file to append to, is a link, a pipe, a device or a folder.

    Writing to a link would change a file elsewhere, and writing to a pipe would block.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    if is_link(path) or not stat.S_ISREG(status.st_mode):
        what = "a link" if is_link(path) else "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UserError(Message(File(str(path)), f" is {what}, not a file."), "Remove it, and start again.", kind="path")


def file_stamp(path: str | Path) -> str:
    """A text that changes when ``path`` is written or replaced, even by a file of the same size and modification time.

    The latter only where the system records the time of changes itself (``st_ctime``, not on Windows). Raises OSError.
    """
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def sha256_file(path: Path) -> str:
    """The SHA-256 of a regular file, in hex. Raises OSError, also for devices and pipes."""
    with os.fdopen(open_regular(path), "rb") as file:
        digest, done, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
        while chunk := file.read(_STEP):
            digest.update(chunk)
            done += len(chunk)
            report_progress(f"hashing {path.name}", done, size)
    return digest.hexdigest()
