"""What to tell the user of a write that failed: no room, a quota, no more files, a limit, a drive that fails, no permission."""

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

_EDQUOT = getattr(errno, "EDQUOT", 122)  # Windows knows no quota error
_IN_USE = (32, 33, 1224)  # Windows' ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION and ERROR_USER_MAPPED_FILE
_NOBODYS = (errno.ENOSPC, _EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # that come from the disk, whatever library was writing
_FULL_BYTES = 1 << 20  # with less than this free, a write that failed failed for lack of space
_FEW_FILES = 16  # of which a saved state takes several
_ROOM_BYTES = 2 << 30  # with more than this free, no file of a run fills a disk
_PROBE_BYTES = 1 << 16
_AGAIN = "and start again: what was finished is kept, and a run resumes from its last checkpoint."
# how a child ends that cannot even write into its log why; others are taken by Python, shells and torch's launcher
_FIRST_STATUS = 80
_STATUSES = (*_NOBODYS, errno.EACCES, errno.EPERM)


def about_the_disk(error: BaseException, folder: Path) -> UserError | None:
    """What to tell of a write into ``folder`` that failed because of the disk or a permission; None for another failure."""
    number = _error_number(error)
    named = getattr(error, "filename", None)
    folder = Path(named).parent if isinstance(named, str) and os.path.isabs(named) else folder
    if number == errno.ENOSPC:
        return disk_full(folder)
    if number == _EDQUOT:
        return _quota(f"The disk quota for {folder} is used up; the disk itself has {_size(free_bytes(folder))} free.")
    if number == errno.EFBIG:
        return file_too_large(named or folder)
    if number == errno.EIO:
        return UserError(
            f"The drive of {named or folder} reports an error: {os.strerror(errno.EIO)}.",
            f"Look at the drive and its cable; copy what you need, or choose another folder, {_AGAIN}",
            kind="disk",
        )
    if number == errno.EROFS or isinstance(error, PermissionError):
        cause = getattr(error, "strerror", None) or os.strerror(number or errno.EACCES)
        return UserError(f"{named or folder} cannot be written: {cause}.", _permission_hint(error, number), kind="permission")
    # torch's and safetensors' writers do not always say what the system said
    return disk_full(folder) if "write" in str(error).lower() and lacks_space(folder) else None


def disk_full(folder: Path) -> UserError:
    """What to tell when the file system of ``folder`` takes no more: it is full, has no room for another file, or has a quota."""
    free, files = free_bytes(folder), _most_files(folder)
    if files and free >= _FULL_BYTES:
        return UserError(
            f"{folder} has no room for another file: its file system has {files:,} entries for files (inodes), all of which are in use. "
            f"{_size(free)} are free.",
            f"Delete files there that you do not need, folders of many small ones first, {_AGAIN}",
            kind="disk",
        )
    if free >= _ROOM_BYTES:
        return _quota(f"{folder} takes no more data, although its disk has {_size(free)} free.")
    return UserError(f"The disk is full: {folder} has {free / 2**20:.1f} MB left.", f"Free some space there {_AGAIN}", kind="disk")


def file_too_large(place: object) -> UserError:
    """What to tell of a file that would be larger than a limit allows."""
    limit = _largest_file()
    if limit is None:
        return UserError(
            f"{place} cannot be written: a file would be larger than its file system allows.",
            f"Choose a folder on a drive with another file system (FAT32 ends at 4 GB), {_AGAIN}",
            kind="disk",
        )
    return UserError(
        f"{place} cannot be written: this process may write no file larger than {_size(limit)} (ulimit -f).",
        f"Raise that limit where ComfyUI is started (ulimit -f unlimited), {_AGAIN}",
        kind="disk",
    )


def lacks_space(folder: Path) -> bool:
    """Whether the file system of ``folder`` is as good as full."""
    return free_bytes(folder) < _FULL_BYTES


def free_bytes(folder: Path) -> int:
    """What the file system of ``folder``, which need not exist yet, has left."""
    return shutil.disk_usage(_existing(folder)).free


def probe(folder: Path) -> UserError | None:
    """Try to write into ``folder``; what to tell when the disk or a permission forbids it."""
    path = folder / f"{PARTIAL}{secrets.token_hex(8)}.tmp"
    try:
        with path.open("xb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return None
    except OSError as error:
        return about_the_disk(error, folder)
    finally:
        with suppress(OSError):  # the file system is read-only: then it is not there either
            path.unlink(missing_ok=True)


def exit_status(*errors: BaseException) -> int | None:
    """How a child ends whose log cannot be written because of the first of ``errors`` that came from the disk; None where none did."""
    numbers = [number for error in errors if (number := _error_number(error)) in _STATUSES]
    return _FIRST_STATUS + _STATUSES.index(numbers[0]) if numbers else None


def from_exit_status(status: int, folder: Path) -> UserError | None:
    """What a child that ended with ``exit_status`` could not tell; None for any other status."""
    if not 0 <= status - _FIRST_STATUS < len(_STATUSES):
        return None
    number = _STATUSES[status - _FIRST_STATUS]
    return about_the_disk(OSError(number, os.strerror(number)), folder)


def _error_number(error: BaseException) -> int | None:
    """The system's error number of an OSError, else of the disk's error that another one tells of or was raised for."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    seen: set[int] = set()
    before: BaseException | None = error
    while before is not None and id(before) not in seen:
        seen.add(id(before))
        number = before.errno if isinstance(before, OSError) else _told_number(str(before))
        if number in _NOBODYS:
            return number
        before = before.__cause__ or before.__context__
    return None


def _told_number(text: str) -> int | None:
    found = re.search(r"\(os error (\d+)\)", text)  # Rust: safetensors
    if found and sys.platform == "win32":
        return OSError(0, "", None, int(found[1])).errno
    return int(found[1]) if found else errno.ENOSPC if "no space left" in text.lower() else None


def _quota(message: str) -> UserError:
    whose = "A quota is used up: yours, or that of a container or a network drive."
    return UserError(message, f"{whose} Free some space of your own there, or have it raised, {_AGAIN}", kind="disk")


def _largest_file() -> int | None:
    """Bytes, as RLIMIT_FSIZE limits them; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _most_files(folder: Path) -> int:
    """How many files a file system can hold, if it holds as many or nearly; 0 for any other.

    Nearly: removing a half-written state has freed a few before anyone looks.
    """
    if sys.platform == "win32":
        return 0
    status = os.statvfs(_existing(folder))
    return status.f_files if status.f_files and status.f_favail < _FEW_FILES else 0


def _permission_hint(error: BaseException, number: int | None) -> str:
    if getattr(error, "winerror", None) in _IN_USE:
        return "Another program has it open, or a virus scanner or a sync client looks at it: close that, and start again."
    if sys.platform == "win32":
        return "Make the folder writable, close what has the file open, or choose another folder."
    if number == errno.EROFS:
        return f"A drive that reports errors is switched to read-only: look at it, make it writable, or choose another folder, {_AGAIN}"
    return "Make the folder writable, or choose another one."


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
