"""Writing, replacing and moving files so that no reader ever sees half of one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from .reading import open_regular

_BUSY_SECONDS = 5.0
_ABANDONED_SECONDS = 86_400.0
PARTIAL = ".partial-"  # the prefix of every file and folder that is being written

_Result = TypeVar("_Result")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` stays unchanged.
    """
    with partial_path(path) as temporary:
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            replace(temporary, path)
        except Exception as error:
            if getattr(error, "filename", None) in (None, str(temporary)):  # the errors of libraries name none
                with suppress(AttributeError):
                    error.filename, error.filename2 = str(path), None  # type: ignore[attr-defined]
            raise


@contextmanager
def partial_path(path: Path) -> Iterator[Path]:
    """Yield a new temporary file beside ``path``, which is removed afterwards unless it was renamed.

    A killed process leaves it behind, so its name ends in ``.tmp``, which no menu of models and no reader of images takes for a complete
    file. Write into it without replacing it: its lock shows ``remove_abandoned`` that it is in use.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary, handle = _new_partial(path)
    except OSError as error:
        error.filename = str(path)  # the caller does not know the temporary one
        raise
    if sys.platform == "win32":  # where an open file cannot be renamed
        os.close(handle)
    try:
        yield temporary
    finally:
        if sys.platform != "win32":
            os.close(handle)
        unlink_partial(temporary)


def _new_partial(path: Path) -> tuple[Path, int]:
    """A new temporary file beside ``path``, and a handle that locks it."""
    while True:
        temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}{path.suffix}.tmp")
        # The mode of an ordinary file, from which the system subtracts the umask. Reading the umask would change it for all threads.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try_lock(handle)
        if sys.platform == "win32" or os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # another process deleted it as abandoned before it was locked


def try_lock(handle: int) -> bool:
    """Lock an open file unless another handle holds the lock. Also False on Windows and on network drives without locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def replace(source: Path, target: Path) -> None:
    """``os.replace`` that on Windows waits while another program has one of the files open."""
    when_free(lambda: os.replace(source, target))


def when_free(action: Callable[[], _Result]) -> _Result:
    """Run ``action`` on a file and return its result. On Windows, retry for five seconds while another program has the file open.

    Virus scanners and sync clients open new files for a moment. Raises PermissionError if it takes longer.
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
    """Move a file atomically to a name that does not exist. Raises FileExistsError, and OSError (EXDEV) for another file system."""
    if sys.platform == "win32":
        when_free(lambda: os.rename(source, target))  # fails if ``target`` exists
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.EXDEV, errno.ENOENT):
            raise
        # a file system without hard links, such as exFAT: one process of this machine moves at a time
        lock = Path(tempfile.gettempdir()) / f"animelora-move-{os.getuid()}.lock"
        with FileLock(str(lock)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            os.replace(source, target)
        return
    source.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where there are no hard links. For files that are replaced and never changed."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOENT):
            raise
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def write_atomic(path: Path, data: bytes | str) -> None:
    r"""Write ``data`` (text as UTF-8, newlines unchanged) to ``path`` so that a reader never sees half of it.

    A lone surrogate, which file names and JSON may contain, is written as ``\ud800``; JSON reads it back as the same surrogate.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def remove_partial(*folders: Path) -> None:
    """Delete partial files that a killed process left in ``folders``. No other process may be writing there."""
    for path in (path for folder in folders for path in folder.glob(f"{PARTIAL}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            unlink_partial(path)


def remove_abandoned(folder: Path) -> None:
    """Delete partial files that killed processes left in ``folder``, where other processes may be writing.

    A file without a lock (on Windows, on some network drives, by earlier versions) counts as abandoned after a day without a change.
    """
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if path.is_symlink():
                continue
            handle = open_regular(path)
            try:
                if path.suffix == ".tmp" and try_lock(handle):
                    path.unlink()  # while locked, so that a writer that has just created it notices
            finally:
                os.close(handle)
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def unlink_partial(path: Path) -> None:
    """Delete a partial file. On Windows, one that another program has open stays until the next time, without an error."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise
