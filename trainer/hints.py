"""What to tell the user about a failure: its kind, what happened, and what to change."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from .errors import UserError

_FULL_BYTES = 1 << 20  # with less than this free, a write that failed failed for lack of space

_MEMORY_HINT = (
    "What helps most, in this order: turn on gradient checkpointing; batch size 1 (raise gradient accumulation instead); "
    "precision bf16; a smaller resolution; close other programs that use the GPU."
)


def disk_full(folder: Path) -> UserError:
    """What to tell when the file system of ``folder`` has no room left."""
    free = _free_bytes(folder)
    return UserError(
        f"The disk is full: {folder} has {free / 2**20:.1f} MB left.",
        "Free some space there and start again: what was finished is kept, and a run resumes from its last checkpoint.",
        kind="disk",
    )


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether ``error`` came from a full disk; torch and safetensors raise errors of their own for a write that failed in ``folder``."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))  # Windows knows no quota error
    text = str(error).lower()
    if "no space left" in text or "os error 28" in text or ("write" in text and lacks_space(folder)):
        return True
    # torch.save ends in "unexpected pos": what it was handling then is the system's error
    before = error.__cause__ or error.__context__
    return before is not None and is_disk_full(before, folder)


def lacks_space(folder: Path) -> bool:
    """Whether the file system of ``folder`` is as good as full."""
    return _free_bytes(folder) < _FULL_BYTES


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def explain(error: BaseException, folder: Path) -> UserError:
    """``error`` as a UserError; an unknown one keeps its type and text and points at the log. ``folder`` is where the run writes."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "not enough memory" in text.lower():
        return UserError(f"Out of memory: {first}", _MEMORY_HINT, kind="memory")
    if is_disk_full(error, folder):
        return disk_full(folder)
    if isinstance(error, PermissionError):
        return UserError(f"No permission: {first}", "Make the folder writable, or choose another output folder.", kind="permission")
    return UserError(f"{type(error).__name__}: {first}", "The whole trace is in child.log in the run folder.", kind="internal")
