"""Why a training child ended without a result, from its status, its last event and what it printed."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from ..core.diagnosis import LOST
from ..core.disk_errors import file_too_large, from_exit_status, probe
from ..core.errors import UserError
from ..core.messages import Message
from ..runs import events
from ..runs.run_folder import RunFolder

_TAIL_LINES = 15
_TOO_LARGE = getattr(signal, "SIGXFSZ", None)  # Python ignores it, not every library


def hung(run: RunFolder, last: events.Event | None, silent: float) -> UserError:
    """Of a child that has told nothing for ``silent`` seconds."""
    doing = "starting" if last is None else last.phase if isinstance(last, events.Phase) else f"its last event was {last.name!r}"
    return UserError(
        f"The training child has told nothing for {silent:.0f} seconds ({doing}), so it was stopped.",
        f"Start again: the run resumes from its last checkpoint. If it hangs again, {run.log} may say where; look at the driver, "
        "the disk and whether memory is being swapped.",
        kind="hung",
    )


def only_follows(event: events.Event, last: events.Event | None) -> bool:
    """Whether ``event`` tells of a lost companion after the companion itself has told why it left."""
    return isinstance(event, events.Error) and event.kind == LOST and isinstance(last, events.Error)


def failure(run: RunFolder, status: int, last: events.Event | None, log_start: int) -> UserError:
    """Of a child that ended with ``status``; what it printed begins at ``log_start`` of its log."""
    lines = _last_lines(run.log, log_start)
    if isinstance(last, events.Error) and last.kind != LOST:
        shown = "" if last.kind not in ("internal",) else f"\nThe child's last lines:\n{lines}"
        return UserError(Message("Training failed: ", last.message, shown), last.hint, kind=last.kind)
    if _TOO_LARGE is not None and status == -_TOO_LARGE:
        return file_too_large(run.path)
    # a child that cannot write could not even log its error; of several processes the status is their launcher's
    if (untold := from_exit_status(status, run.path) or probe(run.path)) is not None:
        return untold
    cause = _lost_process(run.log, log_start) or (f"killed by {_signal(-status)}" if status < 0 else f"exit status {status}")
    if status == 137 or "SIGKILL" in cause or "SIGKILL" in lines:  # the lines of a launcher that was given
        hint = "The system killed it, most often because memory ran out: try gradient checkpointing, a smaller resolution or bf16."
    else:
        hint = f"The whole output is in {run.log}."
    return UserError(f"The training child ended without a result ({cause}). Its last lines:\n{lines}", hint, kind="child")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _lost_process(path: Path, start: int) -> str:
    """Which of several processes ended first and how, from the summary that torch's launcher prints; empty for a run of one process."""
    text = _read_from(path, start)
    ended = re.findall(r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)[^(\n]*\([^)]*\)\s*(?:\((SIG[A-Z]+)\))?", text, re.MULTILINE)
    by_launcher = "SIGTERM"  # how the launcher ends the others
    first = next((each for each in ended if each[2] != by_launcher and each[1] != "1"), next(iter(ended), None))
    if first is None:
        return ""
    rank, code, signal = first
    return f"process {rank} of {len(ended)} ended with {signal or f'exit status {code}'}"


def _last_lines(path: Path, start: int) -> str:
    text = _read_from(path, start)
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:]) or "(it printed nothing)"


def _read_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")
