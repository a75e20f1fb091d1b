"""What to tell the user about a failure: its kind, what happened, and what to change."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .processes import current

# a drive or folder that is not there, a file where a folder should be (or the other way round), too long a name
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
_IN_USE = (32, 33, 1224)  # Windows' ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION and ERROR_USER_MAPPED_FILE
_FULL_BYTES = 1 << 20  # with less than this free, a write that failed failed for lack of space


LOST = "lost"  # kind of the error of a process whose companion ended
_LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "NCCL error", "remote process exited")

# What libraries say where memory did not suffice, in lower case, underscores as blanks. Not Triton's "out of resource: shared memory".
_NO_MEMORY = (
    "out of memory", "outofmemory", "errormemoryallocation",  # CUDA, HIP, MPS and XPU, and their error codes
    "not enough memory", "can't allocate memory", "cannot allocate memory",  # torch on a CPU; the system
    "alloc failed", "allocfailed", "allocation failed",  # cuBLAS, cuDNN, cuSOLVER, cuFFT, hipBLAS; MIOpen; cuDNN 9
    "rocblas status memory error", "out of device memory", "out of host memory",  # rocBLAS; SYCL and Vulkan
    "valid cudnn algorithm",  # torch, when every algorithm that it tried lacked memory
    "invalid buffer size", "not enough gpu video memory",  # MPS; DirectML
    "bad alloc", "bad allocation",  # C++
    "paging file is too small", "os error 1455",  # Windows, when a file is mapped or memory reserved
)  # fmt: skip
_SMALLER = "prepare the dataset at a smaller resolution, and close other programs that use the same memory"
_MEMORY_HINT = f"Set training.memory to auto, or turn on gradient checkpointing; micro-batches of 1; precision bf16; {_SMALLER}."


def memory_hint(needed: float, savings: Sequence[tuple[str, float]]) -> str:
    """What to change after memory ran out in a run of about ``needed`` GB. ``savings``: a change and what is needed with it, best first."""
    if not savings:
        return f"The settings save what they can: {_SMALLER}."
    (change, less), *others = savings
    then = f" Then: {'; '.join(other for other, _ in others)}." if others else ""
    return f"What helps most: {change} (about {less:.1f} GB instead of {needed:.1f} GB).{then} Or {_SMALLER}."


def disk_full(folder: Path) -> UserError:
    """What to tell when the file system of ``folder`` has no room left."""
    free = free_bytes(folder)
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


def first_line(error: BaseException) -> str:
    """What ``error`` says, in a line of at most 200 characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` came from memory, the machine's or a GPU's, that did not suffice."""
    text = f"{type(error).__name__}: {error}".lower().replace("_", " ")
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return no_memory or any(words in text for words in _NO_MEMORY)


def lacks_space(folder: Path) -> bool:
    """Whether the file system of ``folder`` is as good as full."""
    return free_bytes(folder) < _FULL_BYTES


def not_writable(error: BaseException) -> bool:
    """Whether ``error`` came from a folder that must not be written to, or a file system that cannot be."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def free_bytes(folder: Path) -> int:
    """What the file system of ``folder``, which need not exist yet, has left."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def about_the_disk(error: OSError, folder: Path) -> UserError | None:
    """What to tell of a write into ``folder`` that failed because there is no room or no permission; None for another failure."""
    if is_disk_full(error, folder):
        return disk_full(folder)
    if not_writable(error):
        message = f"{error.filename or folder} cannot be written: {error.strerror}."
        if getattr(error, "winerror", None) in _IN_USE:
            hint = "Another program has it open, or a virus scanner or a sync client looks at it: close that, and start again."
        elif sys.platform == "win32":
            hint = "Make the folder writable, close what has the file open, or choose another folder."
        else:
            hint = "Make the folder writable, or choose another one."
        return UserError(message, hint, kind="permission")
    return None


def about_the_file(error: OSError) -> UserError | None:
    """What to tell of an ``error`` that names its file: about the disk, or that there is no such place; None for another failure."""
    told = about_the_disk(error, Path(os.path.dirname(str(error.filename or "")) or "."))
    if told is None and error.filename and error.errno in _NO_SUCH_PLACE:
        told = UserError(f"{error.filename}: {error.strerror}.", "Check the path: every folder in it, and that no name is too long.")
    return told


def explain(error: BaseException, folder: Path) -> UserError:
    """``error`` as a UserError; an unknown one keeps its type and text and points at the log. ``folder`` is where the run writes."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if is_out_of_memory(error):
        return UserError(f"Out of memory: {first}", _MEMORY_HINT, kind="memory")
    if is_disk_full(error, folder):
        return disk_full(folder)
    if current().world > 1 and any(sign in text for sign in _LOST_SIGNS):
        return UserError(f"Another process of this run was lost: {first}", "child.log in the run folder says which, and why.", kind=LOST)
    if isinstance(error, OSError) and (told := about_the_disk(error, folder)) is not None:
        return told
    return UserError(f"{type(error).__name__}: {first}", "The whole trace is in child.log in the run folder.", kind="internal")
