"""Why a training child ended without a result, worked out from its exit status, its last event and its output."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from ..core.diagnosis import LOST
from ..core.disk_errors import file_too_large, from_exit_status, try_writing
from ..core.errors import UserError
from ..core.messages import File, Message, Setting
from ..runs import events
from ..runs.run_folder import RunFolder

_TAIL_LINES = 15
_TOO_LARGE = getattr(signal, "SIGXFSZ", None)  # Python ignores it, not every library


def hung_error(run: RunFolder, last: events.Event | None, silent: float) -> UserError:
    """The error for a child that has written no event for ``silent`` seconds."""
    activity = "starting" if last is None else last.phase if isinstance(last, events.Phase) else f"its last event was {last.name!r}"
    return UserError(
        f"The training child sent nothing for {silent:.0f} seconds ({activity}), so it was stopped.",
        f"Start again to resume from the last checkpoint. If it hangs again, {run.log} may show where; check the driver, the disk, "
        "and whether memory is being swapped.",
        kind="hung",
    )


def is_consequence(event: events.Event, last: events.Event | None) -> bool:
    """Whether ``event`` only reports that another training process is gone, after that process reported its own error as ``last``."""
    return isinstance(event, events.Error) and event.kind == LOST and isinstance(last, events.Error)


def failure_of(run: RunFolder, status: int, last: events.Event | None, log_start: int) -> UserError:
    """The error for a child that ended with the exit status ``status``; its output begins at byte ``log_start`` of its log."""
    lines = _last_lines(run.log, log_start)
    if isinstance(last, events.Error) and last.kind != LOST:
        output = f"\nIts last lines of output:\n{lines}" if last.kind == "internal" else ""
        return UserError(Message("Training failed: ", last.message, output), last.hint, kind=last.kind)
    if _TOO_LARGE is not None and status == -_TOO_LARGE:
        return file_too_large(File(str(run.path)))
    # a child that cannot write cannot log its error either; the status of several processes is that of their launcher
    if (disk_error := from_exit_status(status, run.path) or try_writing(run.path)) is not None:
        return disk_error
    cause = _lost_process(run.log, log_start) or (f"killed by {_signal(-status)}" if status < 0 else f"exit status {status}")
    if status == 137 or "SIGKILL" in cause or "SIGKILL" in lines:  # in the output of a launcher
        hint = Message(
            "The system killed it, usually because memory ran out. Set ", Setting("training.gradient_checkpointing", True), " or ",
            Setting("training.precision", "bf16"), ", or prepare the dataset at a smaller resolution.",
        )  # fmt: skip
    else:
        hint = Message("Its full output is in ", File(str(run.log)), ".")
    return UserError(f"The training child ended without a result ({cause}). Its last lines of output:\n{lines}", hint, kind="child")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _lost_process(path: Path, start: int) -> str:
    """Which of several processes ended first and how, from the summary that torch's launcher prints; empty for a single process."""
    text = _read_from(path, start)
    ended = re.findall(r"^[ \t]*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)[^(\n]*\([^)]*\)\s*(?:\((SIG[A-Z]+)\))?", text, re.MULTILINE)
    by_launcher = "SIGTERM"  # with which the launcher ends the others
    first = next((each for each in ended if each[2] != by_launcher and each[1] != "1"), next(iter(ended), None))
    if first is None:
        return ""
    rank, code, signal = first
    return f"process {rank} of {len(ended)} ended with {signal or f'exit status {code}'}"


def _last_lines(path: Path, start: int) -> str:
    text = _read_from(path, start)
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:]) or "(no output)"


def _read_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")
