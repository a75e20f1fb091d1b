"""What to tell the user about a failure: its kind, what happened, and what to change."""

from __future__ import annotations

import errno

from .errors import UserError

_MEMORY_HINT = (
    "What helps most, in this order: turn on gradient checkpointing; batch size 1 (raise gradient accumulation instead); "
    "precision bf16; a smaller resolution; close other programs that use the GPU."
)


def explain(error: BaseException) -> UserError:
    """``error`` as a UserError; an unknown one keeps its type and text and points at the log."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "not enough memory" in text.lower():
        return UserError(f"Out of memory: {first}", _MEMORY_HINT, kind="memory")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        hint = "Free some space and start again: the run resumes from its last checkpoint."
        return UserError(f"The disk is full: {first}", hint, kind="disk")
    if isinstance(error, PermissionError):
        return UserError(f"No permission: {first}", "Make the folder writable, or choose another output folder.", kind="permission")
    return UserError(f"{type(error).__name__}: {first}", "The whole trace is in child.log in the run folder.", kind="internal")
