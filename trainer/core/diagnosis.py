"""What to tell the user about a failure: its kind, what happened, and what to change."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from .disk_errors import about_the_disk
from .errors import UserError
from .work.processes import current

# a drive or folder that is not there, a file where a folder should be (or the other way round), too long a name
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)

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


def first_line(error: BaseException) -> str:
    """What ``error`` says, in a line of at most 200 characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` came from memory, the machine's or a GPU's, that did not suffice."""
    text = f"{type(error).__name__}: {error}".lower().replace("_", " ")
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return no_memory or any(words in text for words in _NO_MEMORY)


def as_user_error(error: Exception) -> UserError | None:
    """What a command or a node tells of ``error``; None for a fault of the pack, which keeps its traceback."""
    if isinstance(error, OSError):
        return _about_the_file(error)
    if isinstance(error, UnicodeEncodeError):
        return _about_the_text(error)
    return error if isinstance(error, UserError) else None


def _about_the_file(error: OSError) -> UserError | None:
    """What to tell of an ``error`` that names its file: about the disk, or that there is no such place; None for another failure."""
    told = about_the_disk(error, Path(os.path.dirname(str(error.filename or "")) or os.curdir))
    if told is None and error.filename and error.errno in _NO_SUCH_PLACE:
        told = UserError(f"{error.filename}: {error.strerror}.", "Check the path: every folder in it, and that no name is too long.")
    return told


def _about_the_text(error: UnicodeEncodeError) -> UserError | None:
    """What to say where a text holds half a character (a lone surrogate, as JSON's \\ud800), which no file and no tokeniser can hold.

    None for another failure.
    """
    if error.reason != "surrogates not allowed":
        return None
    code = ord(error.object[error.start])
    around = error.object[max(0, error.start - 20) : error.end + 20].encode("ascii", "backslashreplace").decode("ascii")
    return UserError(
        f"A text holds half a character, U+{code:04X}, which cannot be written: {around}", "Type this text again, or remove the character."
    )


def explain(error: BaseException, folder: Path) -> UserError:
    """``error`` as a UserError; an unknown one keeps its type and text and points at the log. ``folder`` is where the run writes."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if is_out_of_memory(error):
        return UserError(f"Out of memory: {first}", _MEMORY_HINT, kind="memory")
    if (told := about_the_disk(error, folder)) is not None:
        return told
    if current().world > 1 and any(sign in text for sign in _LOST_SIGNS):
        return UserError(f"Another process of this run was lost: {first}", "child.log in the run folder says which, and why.", kind=LOST)
    return UserError(f"{type(error).__name__}: {first}", "The whole trace is in child.log in the run folder.", kind="internal")
