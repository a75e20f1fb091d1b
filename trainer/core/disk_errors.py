"""Errors for users when writing fails: disk full, quota, no inodes, size limit, drive errors, missing permission."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files.writing import PARTIAL
from .messages import File, Message

_EDQUOT = getattr(errno, "EDQUOT", 122)  # Windows has no such error
_IN_USE = (32, 33, 1224)  # Windows' ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION and ERROR_USER_MAPPED_FILE
_DISK_ERRORS = (errno.ENOSPC, _EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # never caused by the library that was writing
_FULL_BYTES = 1 << 20  # with less than this free, lack of space is taken to be the cause
_FEW_FILES = 16  # a saved state takes several
_AMPLE_BYTES = 2 << 30  # more than any file of a run needs
_PROBE_BYTES = 1 << 16
_START_AGAIN = "and start again: finished work is kept, and a run resumes from its last checkpoint."
# exit statuses of a child that cannot write the reason into its log; Python, shells and torch's launcher use lower and higher ones
_FIRST_STATUS = 80
_STATUSES = (*_DISK_ERRORS, errno.EACCES, errno.EPERM)


def as_disk_error(error: BaseException, folder: Path) -> UserError | None:
    """``error`` of writing into ``folder`` as a UserError if the disk or a permission caused it; None for any other error."""
    number = _error_number(error)
    named = getattr(error, "filename", None)
    folder = Path(named).parent if isinstance(named, str) and os.path.isabs(named) else folder
    place = File(str(named or folder))
    if number == errno.ENOSPC:
        return disk_full(folder)
    if number == _EDQUOT:
        return _quota(
            Message("The disk quota of ", File(str(folder)), f" is used up; the disk itself has {_size(free_bytes(folder))} free.")
        )
    if number == errno.EFBIG:
        return file_too_large(place)
    if number == errno.EIO:
        return UserError(
            Message("The drive of ", place, f" reports an error: {os.strerror(errno.EIO)}."),
            f"Check the drive and its cable, copy the files you need, or choose another folder, {_START_AGAIN}",
            kind="disk",
        )
    if number == errno.EROFS or isinstance(error, PermissionError):
        cause = getattr(error, "strerror", None) or os.strerror(number or errno.EACCES)
        return UserError(Message(place, f" cannot be written: {cause}."), _permission_hint(error, number), kind="permission")
    # torch and safetensors do not always pass on the system's error
    return disk_full(folder) if "write" in str(error).lower() and lacks_space(folder) else None


def disk_full(folder: Path) -> UserError:
    """The error for a file system that accepts no more data: it is full, out of inodes, or has a quota."""
    free, files = free_bytes(folder), _inodes_if_used_up(folder)
    if files and free >= _FULL_BYTES:
        return UserError(
            Message(
                File(str(folder)),
                f" has no room for another file: its file system has {files:,} entries for files (inodes), and practically all are in use. "
                f"{_size(free)} are free.",
            ),
            f"Delete files that you do not need there, beginning with folders of many small files, {_START_AGAIN}",
            kind="disk",
        )
    if free >= _AMPLE_BYTES:
        return _quota(Message(File(str(folder)), f" accepts no more data, although its disk has {_size(free)} free."))
    message = Message("The disk is full: ", File(str(folder)), f" has {free / 2**20:.1f} MB left.")
    return UserError(message, f"Free some space there {_START_AGAIN}", kind="disk")


def file_too_large(place: File) -> UserError:
    """The error for a file larger than the file system or the process may write."""
    limit = _largest_file()
    if limit is None:
        return UserError(
            Message(place, " cannot be written: the file would be larger than its file system allows."),
            f"Choose a folder on a drive with another file system (files on FAT32 are limited to 4 GB), {_START_AGAIN}",
            kind="disk",
        )
    return UserError(
        Message(place, f" cannot be written: this process may not write files larger than {_size(limit)} (ulimit -f)."),
        f"Raise the limit where ComfyUI is started (ulimit -f unlimited), {_START_AGAIN}",
        kind="disk",
    )


def lacks_space(folder: Path) -> bool:
    """Whether the file system of ``folder`` is practically full."""
    return free_bytes(folder) < _FULL_BYTES


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system of ``folder``, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def try_writing(folder: Path) -> UserError | None:
    """Write a small file into ``folder`` and delete it. Returns the error if the disk or a permission prevents it."""
    path = folder / f"{PARTIAL}{secrets.token_hex(8)}.tmp"
    try:
        with path.open("xb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return None
    except OSError as error:
        return as_disk_error(error, folder)
    finally:
        with suppress(OSError):  # on a read-only file system it does not exist
            path.unlink(missing_ok=True)


def exit_status_for(*errors: BaseException) -> int | None:
    """The exit status of a child that cannot write its log because of the first disk error in ``errors``; None without one."""
    numbers = [number for error in errors if (number := _error_number(error)) in _STATUSES]
    return _FIRST_STATUS + _STATUSES.index(numbers[0]) if numbers else None


def from_exit_status(status: int, folder: Path) -> UserError | None:
    """The error that a child reported by ``exit_status_for``; None for any other status."""
    if not 0 <= status - _FIRST_STATUS < len(_STATUSES):
        return None
    number = _STATUSES[status - _FIRST_STATUS]
    return as_disk_error(OSError(number, os.strerror(number)), folder)


def _error_number(error: BaseException) -> int | None:
    """The number of an OSError, else that of a disk error which ``error`` mentions or was raised from; None without one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        number = cause.errno if isinstance(cause, OSError) else _number_in_text(str(cause))
        if number in _DISK_ERRORS:
            return number
        cause = cause.__cause__ or cause.__context__
    return None


def _number_in_text(text: str) -> int | None:
    match = re.search(r"\(os error (\d+)\)", text)  # Rust: safetensors
    if match and sys.platform == "win32":
        return OSError(0, "", None, int(match[1])).errno
    return int(match[1]) if match else errno.ENOSPC if "no space left" in text.lower() else None


def _quota(message: str) -> UserError:
    whose = "A quota is used up: yours, or that of a container or a network drive."
    return UserError(message, f"{whose} Delete files of your own there, or have the quota raised, {_START_AGAIN}", kind="disk")


def _largest_file() -> int | None:
    """Bytes allowed by RLIMIT_FSIZE; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _inodes_if_used_up(folder: Path) -> int:
    """The number of inodes of a file system if (nearly) all are used; 0 for any other.

    Nearly: deleting a half-written state may already have freed a few.
    """
    if sys.platform == "win32":
        return 0
    status = os.statvfs(_existing(folder))
    return status.f_files if status.f_files and status.f_favail < _FEW_FILES else 0


def _permission_hint(error: BaseException, number: int | None) -> str:
    if getattr(error, "winerror", None) in _IN_USE:
        return "Another program, a virus scanner or a sync client has it open: close that, and start again."
    if sys.platform == "win32":
        return "Make the folder writable, close what has the file open, or choose another folder."
    if number == errno.EROFS:
        return f"A drive with errors is switched to read-only: check it, make it writable, or choose another folder, {_START_AGAIN}"
    return "Make the folder writable, or choose another one."


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
