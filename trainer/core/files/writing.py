"""Write, replace and move files so that no reader ever sees half of one."""

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
PARTIAL = ".partial-"  # how every file and folder that is being written begins

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` is left as it was.
    """
    with partial_path(path) as temporary:
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


@contextmanager
def partial_path(path: Path) -> Iterator[Path]:
    """Yield a new temporary file beside ``path``, which is removed afterwards unless it was renamed.

    A killed process leaves it, so it has no name that a menu of models or a reader of images would take for a whole file: it ends in
    ``.tmp``. Write into it without replacing it: its lock tells ``remove_abandoned`` that it is in use.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary, handle = _new_partial(path)
    except OSError as error:
        error.filename = str(path)  # nobody asked for the other
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
        # With the mode of an ordinary file: the system takes the umask off it. To ask for the umask is to change it, for all threads.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try_lock(handle)
        if sys.platform == "win32" or os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # another process deleted it as abandoned before it was locked


def try_lock(handle: int) -> bool:
    """Lock an open file unless another handle holds it. False on Windows and on network drives without locks, too."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left half written in ``folder``, where other processes may be writing now.

    Where a file cannot be locked (on Windows, on some network drives, by earlier versions), it is abandoned after a day without a change.
    """
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if path.is_symlink():
                continue
            handle = open_regular(path)
            try:
                if path.suffix == ".tmp" and try_lock(handle):
                    path.unlink()  # while it is locked, so that a writer that has just made it sees that it is gone
            finally:
                os.close(handle)
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def unlink_partial(path: Path) -> None:
    """Delete a half-written file. One that another program has open stays on Windows until the next time; nothing fails for it."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise
