"""Does a work in a fork, kills it, repeats it, and compares the files with those of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.tools.children.processes import living

# Python's audit events of what changes the file system. "open" counts for files that are opened for writing.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.utime", "os.chmod", "os.symlink")
# Logs of when and how often something was done: only their names are compared.
_LOGS = (
    "*/events.jsonl", "*/child.log", "*/result.json", "*/loss_curve.png", "*/report.html", "*/.prepare/*", "*.lock",
    "*/checkpoint-hashes.json", "*/started.json",
)  # fmt: skip
_CHILD_SECONDS = 30.0  # for a child whose parent was killed to save and leave


@dataclass(frozen=True)
class Work:
    """Something that the pack does in a folder; after a kill the user does it again."""

    name: str
    folder: str  # the template that it starts from
    act: Callable[[Path], None]
    may_leave: str = ""  # a pattern of files that an undisturbed run does not leave


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run leaves, how long it takes, and how often it changes the file system."""

    files: dict[str, str]
    seconds: float
    changes: int


@dataclass
class Tally:
    """What was done. ``failures``: a line for each difference."""

    kills: int = 0
    trials: int = 0
    failures: list[str] = field(default_factory=list)


def try_once(folder: Path, work: Work, known: Undisturbed, seed: int, tally: Tally) -> list[str]:
    """Kill the work once or more and repeat it; what is then otherwise than it should be."""
    chance = random.Random(f"{work.name} {seed}")
    place = fresh_folder(folder, work)
    points: list[float] = []
    while not points or (chance.random() < 0.3 and len(points) < 3):
        points.append(chance.randint(1, known.changes) if chance.random() < 0.6 else chance.uniform(0, known.seconds))
    how = []
    for point in points:
        status, output = attempt(work, place, point)
        how.append(f"{point:.2f} s" if isinstance(point, float) else f"change {point}")
        if status == -signal.SIGKILL:
            tally.kills += 1
        elif status:
            return [f"after {how}: exit status {status}: {output}"]
    status, output = attempt(work, place, None)
    if status:
        return [f"killed at {how}, repeated: exit status {status}: {output}"]
    _wait_for_children(place)
    found = {name: digest for name, digest in files_of(place).items() if name in known.files or not fnmatchcase(name, work.may_leave)}
    return [f"killed at {how}: {line}" for line in differences(known.files, found)]


def attempt(work: Work, place: Path, point: int | float | None) -> tuple[int, str]:
    """Do the work in a fork, killed before the ``point``-th change or after ``point`` seconds; status (negative: signal) and output."""
    log = place.with_suffix(".log")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _act(work, place, log, point if isinstance(point, int) else None)
    if isinstance(point, float):
        time.sleep(point)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""


def _act(work: Work, place: Path, log: Path, kill_at: int | None, counted: Path | None = None) -> None:
    """In the fork: do the work and end the process."""
    status = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.chdir(place)
        count = _count_changes(place, kill_at)
        work.act(place)
        if counted is not None:
            changes = count()
            counted.write_text(str(changes), encoding="utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _count_changes(place: Path, kill_at: int | None) -> Callable[[], int]:
    """Count what changes files below ``place`` in this process from now on, and kill it just before the ``kill_at``-th time."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        elif event not in _CHANGES:
            return
        else:
            path = arguments[0]
        if isinstance(path, int) or (os.path.isabs(text := os.fsdecode(path)) and not text.startswith(str(place))):
            return
        changes += 1
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: changes


def run_undisturbed(folder: Path, work: Work) -> Undisturbed:
    """Do the work once and return what it leaves."""
    place, counted = fresh_folder(folder, work), folder / "changes"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _act(work, place, place.with_suffix(".log"), None, counted)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"{work.name}: {place.with_suffix('.log').read_text(encoding='utf-8')}"
    return Undisturbed(files_of(place), time.monotonic() - began, int(counted.read_text(encoding="utf-8")))


def fresh_folder(folder: Path, work: Work) -> Path:
    """The folder in which the work is done, as it is at its start: always the same path."""
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "templates" / work.folder, place)
    return place


def _wait_for_children(place: Path) -> None:
    """Until no training child of an earlier attempt is left."""
    end = time.monotonic() + _CHILD_SECONDS
    while any(each.run.startswith(str(place)) for each in living()):
        assert time.monotonic() < end, "a training process is left"
        time.sleep(0.1)


def files_of(place: Path) -> dict[str, str]:
    """Every file below ``place`` with the hash of its bytes; of a log only that it is there."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = f"/{path.relative_to(place).as_posix()}"
        if path.is_dir():
            found[f"{name}/"] = ""
        elif "/tensorboard/" not in name:  # a file for each start
            known = any(fnmatchcase(name, pattern) for pattern in _LOGS)
            found[name] = "" if known else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is missing, left over, or has other bytes."""
    lines = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - wanted.keys()]
    return sorted(lines + [f"{name} has other bytes" for name in wanted.keys() & found.keys() if wanted[name] != found[name]])
