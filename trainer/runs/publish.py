"""Copying a finished LoRA into a folder of LoRAs, whole or not at all, without replacing another file.

A half-written file never has a name that a menu of LoRAs shows. It is written in the run folder if that is on the same file system, else in
the target folder, where a later run deletes what a killed run left.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.disk_errors import as_disk_error
from ..core.errors import UserError
from ..core.files.paths import expand_home
from ..core.files.reading import sha256_file
from ..core.files.writing import (
    PARTIAL,
    move_new,
    remove_abandoned,
    remove_partial,
    try_lock,
    unlink_partial,
    when_free,
    write_atomic,
)
from ..core.messages import File, Message
from .run_folder import RunFolder

_OURS = f"{PARTIAL}lora-"
_ATTEMPTS = 5
_MOST_NUMBER = 99  # of LoRAs of one name


def publish(run: RunFolder, folder: str) -> Path | None:
    """Copy the finished LoRA to ``folder`` and return the path of the copy; None without a ``folder``.

    A different file of the same name is never overwritten: the copy then gets a number, ``my_style_2``. The caller holds the lock of the
    run. Raises UserError if the folder cannot be written, or all numbers are taken.
    """
    if not folder:
        return None
    target_folder = expand_home(folder).resolve()
    targets = _targets(run, target_folder)
    try:
        remove_partial(run.path)
        remove_left_over(target_folder)
        place = put(run.lora.read_bytes(), targets, near=run.path, digest=run.lora_digest())
    except OSError as error:
        explained = as_disk_error(error, target_folder)
        if explained is None:
            raise
        raise UserError(
            explained.message, Message(explained.hint, " The new LoRA is intact in ", File(str(run.lora)), "."), kind=explained.kind
        ) from error
    if place is None:
        raise UserError(
            f"{target_folder} already holds {_MOST_NUMBER} other LoRAs named {run.lora.stem}.",
            f"Choose another name. The new LoRA is kept in {run.lora}.",
            kind="output",
        )
    return place


def restore(run: RunFolder, folder: str) -> Path | None:
    """Copy the finished LoRA of a run back from ``folder``, to which it was published; the path it was found at, or None."""
    published = published_at(run, folder)
    if published is not None:
        write_atomic(run.lora, published.read_bytes())
    return published


def published_at(run: RunFolder, folder: str) -> Path | None:
    """The copy of the finished LoRA of a run in ``folder``; None if there is none, or the run did not finish."""
    digest = run.lora_digest()
    if not (folder and digest):
        return None
    return next((path for path in _targets(run, expand_home(folder).resolve()) if _has(path, digest)), None)


def put(data: bytes, targets: Sequence[Path], *, near: Path | None = None, digest: str = "") -> Path | None:
    """Write ``data`` to the first of ``targets`` that is free or already holds it, and return that path; None if all are other files.

    Several processes can do this at once without overwriting each other's files. ``near``: a folder to write in first, if files can be
    moved from there. ``digest``: the SHA-256 of ``data``, if it is known.
    """
    digest = digest or hashlib.sha256(data).hexdigest()
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            if os.path.lexists(target):
                if _has(target, digest):
                    return target
                break
            try:
                _put_new(data, target, near)
            except FileExistsError:
                continue  # another process was faster, perhaps with the same file
            except FileNotFoundError:  # another process took the unfinished file for a leftover and deleted it
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return target
    return None


def remove_left_over(folder: Path) -> None:
    """Delete half-written files of killed processes from a folder of LoRAs to which other processes may be writing."""
    remove_abandoned(folder)
    if sys.platform == "win32":
        for path in folder.glob(f"{_OURS}*"):
            with suppress(OSError):  # one that is being written is open and cannot be deleted
                path.unlink()


def _targets(run: RunFolder, folder: Path) -> list[Path]:
    """Where the LoRA of ``run`` may be published, in order. A file of an earlier version, with the run's identity in its name, stays."""
    old = folder / f"{run.lora.stem}-{run.identity}.safetensors"
    numbered = [folder / f"{run.lora.stem}_{number}.safetensors" for number in range(2, _MOST_NUMBER + 1)]
    return [*([old] if old.exists() else []), folder / run.lora.name, *numbered]


def _has(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and when_free(lambda: sha256_file(path)) == digest
    except OSError:  # it cannot be read, so it is not ours
        return False


def _put_new(data: bytes, target: Path, near: Path | None) -> None:
    """Raises FileExistsError if ``target`` exists."""
    if near is not None and near.stat().st_dev == target.parent.stat().st_dev:
        try:
            with _staged(data, near, target) as staged:
                move_new(staged, target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:  # two mounts of one file system
                raise
    with _staged(data, target.parent, target) as staged:
        move_new(staged, target)


@contextmanager
def _staged(data: bytes, folder: Path, target: Path) -> Iterator[Path]:
    """A temporary file with ``data`` in ``folder``; errors name ``target``. Its lock shows other processes that it is in use."""
    path = folder / f"{_OURS}{secrets.token_hex(8)}.tmp"
    try:
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666), "r+b") as file:
            try_lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # Windows cannot move an open file
                yield path
        if sys.platform == "win32":
            yield path
    except FileExistsError:
        raise
    except OSError as error:
        error.filename = str(target)  # the user knows nothing of the temporary file
        raise
    finally:
        unlink_partial(path)
