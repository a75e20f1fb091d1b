"""Turns exceptions into errors for users: their kind, what happened, and what to change."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from .disk_errors import as_disk_error
from .errors import UserError
from .messages import File, Message, Setting, join_messages
from .work.processes import current_process_group

# a missing drive or folder, a file in place of a folder or the reverse, a name that is too long
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)

LOST = "lost"  # the kind of the error if another process of the run ended
_LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "NCCL error", "remote process exited")

# How libraries report that memory ran out, in lower case, with spaces for underscores. Not Triton's "out of resource: shared memory".
_NO_MEMORY = (
    "out of memory", "outofmemory", "errormemoryallocation",  # CUDA, HIP, MPS and XPU, and their error codes
    "not enough memory", "can't allocate memory", "cannot allocate memory",  # torch on a CPU; the system
    "alloc failed", "allocfailed", "allocation failed",  # cuBLAS, cuDNN, cuSOLVER, cuFFT, hipBLAS; MIOpen; cuDNN 9
    "rocblas status memory error", "out of device memory", "out of host memory",  # rocBLAS; SYCL and Vulkan
    "valid cudnn algorithm",  # torch, after every algorithm that it tried ran out of memory
    "invalid buffer size", "not enough gpu video memory",  # MPS; DirectML
    "bad alloc", "bad allocation",  # C++
    "paging file is too small", "os error 1455",  # Windows, when mapping a file or reserving memory
)  # fmt: skip
_SMALLER = "prepare the dataset at a smaller resolution, and close other programs that use the same memory"
_MEMORY_HINT = Message(
    "Set ",
    Setting("training.memory", "auto"),
    ", or change single settings: ",
    join_messages(
        ", ",
        [
            Setting("training.gradient_checkpointing", True),
            Setting("training.micro_batch_size", 1),
            Setting("training.precision", "bf16"),
        ],
    ),
    f". Or {_SMALLER}.",
)


def memory_hint(needed: float, savings: Sequence[tuple[Setting, float]]) -> Message:
    """What to change after memory ran out in a run of about ``needed`` GB.

    ``savings``: settings with the GB that the run would need with each alone, best first.
    """
    if not savings:
        return Message(f"The settings already save as much memory as they can: {_SMALLER}.")
    (change, less), *others = savings
    then = Message(" Then: ", join_messages("; ", (other for other, _ in others)), ".") if others else ""
    return Message("What helps most: ", change, f" (about {less:.1f} GB instead of {needed:.1f} GB).", then, f" Or {_SMALLER}.")


def first_line(error: BaseException) -> str:
    """The first line of the text of ``error``, at most 200 characters; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that the memory of the machine or of a GPU ran out."""
    text = f"{type(error).__name__}: {error}".lower().replace("_", " ")
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return no_memory or any(words in text for words in _NO_MEMORY)


def as_user_error(error: Exception) -> UserError | None:
    """``error`` of a command or a node as a UserError; None for a bug, which keeps its traceback."""
    if isinstance(error, OSError):
        return _file_error(error)
    if isinstance(error, UnicodeEncodeError):
        return _surrogate_error(error)
    return error if isinstance(error, UserError) else None


def diagnose(error: BaseException, folder: Path) -> UserError:
    """``error`` of a training process, which writes into ``folder``, as a UserError; for a bug, of the kind ``internal``."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return UserError(f"Out of memory: {first_line(error)}", _MEMORY_HINT, kind="memory")
    if (disk_error := as_disk_error(error, folder)) is not None:
        return disk_error
    if current_process_group().world_size > 1 and any(sign in str(error) for sign in _LOST_SIGNS):
        return UserError(
            f"Another process of this run was lost: {first_line(error)}",
            "See child.log in the run folder for which one and why.",
            kind=LOST,
        )
    return UserError(
        f"{type(error).__name__}: {first_line(error)}", "The full traceback is in child.log in the run folder.", kind="internal"
    )


def _file_error(error: OSError) -> UserError | None:
    """For an error of the disk, or a path that does not exist; None for any other."""
    disk_error = as_disk_error(error, Path(os.path.dirname(str(error.filename or "")) or os.curdir))
    if disk_error is None and error.filename and error.errno in _NO_SUCH_PATH:
        message = Message(File(str(error.filename)), f": {error.strerror}.")
        return UserError(message, "Check the path: every folder in it must exist, and no name may be too long.")
    return disk_error


def _surrogate_error(error: UnicodeEncodeError) -> UserError | None:
    """For text with a lone surrogate (``\\ud800`` in JSON), which no file and no tokeniser accepts; None for any other error."""
    if error.reason != "surrogates not allowed":
        return None
    code = ord(error.object[error.start])
    around = error.object[max(0, error.start - 20) : error.end + 20].encode("ascii", "backslashreplace").decode("ascii")
    return UserError(
        f"The text contains half a character, U+{code:04X} (a lone surrogate), which cannot be written: {around}",
        "Type this text again, or remove the character.",
    )
