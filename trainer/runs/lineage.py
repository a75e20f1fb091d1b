"""Continuing a run by another one that differs only in what comes later: its length, its validation images, what it saves, its name.

Such runs have one lineage (``run_folder.lineage_identity``). A new run takes over the newest saved state of its lineage, and with it the
events, validation images and LoRA files up to that step, as if it had trained those steps itself. The earlier run keeps all of its files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.files.paths import safe_name
from ..core.files.reading import is_link
from ..core.files.sealed_json import read_sealed, write_sealed
from ..core.files.writing import link_or_copy, write_atomic
from . import events, states
from .event_log import read_events
from .run_folder import RunFolder
from .saved_lora import copy_record

_NOT_TAKEN = (events.Done, events.Stopped, events.Error)


@dataclass(frozen=True)
class EarlierRun:
    """A saved state that a run can continue from: the one after ``step`` of a run that was planned to have ``steps``."""

    run: RunFolder
    step: int
    steps: int
    steps_per_epoch: int

    @property
    def state(self) -> Path:
        """The folder of the state."""
        return states.state_folder(self.run.checkpoints, self.step)


@dataclass(frozen=True)
class _Member:
    """A run of a lineage, with its planned length."""

    run: RunFolder
    steps: int
    steps_per_epoch: int


def write_lineage(run: RunFolder, lineage: str, *, steps: int, steps_per_epoch: int) -> None:
    """Record the lineage of a run and its planned length."""
    write_sealed(run.lineage, {"lineage": lineage, "steps": steps, "steps_per_epoch": steps_per_epoch})


def earlier_runs(run: RunFolder, lineage: str, steps: int, *, length_matters: bool) -> list[EarlierRun]:
    """The states that ``run``, which will have ``steps``, can continue from, the newest first; none if its own state is as new.

    ``length_matters``: no run that was planned to be longer counts, since it had other learning rates at the same steps.
    """
    own = states.newest_step(run.checkpoints)
    found = [
        EarlierRun(member.run, step, member.steps, member.steps_per_epoch)
        for member in _members(run, lineage)
        if not (length_matters and member.steps > steps)
        for step in states.saved_steps(member.run.checkpoints)
        if own < step <= steps
    ]
    return sorted(found, key=lambda each: (-each.step, each.steps, each.run.path.name))


def longest_finished(run: RunFolder, lineage: str) -> EarlierRun | None:
    """The end of the longest finished run of the lineage of ``run``, which counts, too; None if none is finished."""
    members = [*_members(run, lineage), *([own] if (own := _member(run, lineage)) is not None else [])]
    for member in sorted(members, key=lambda each: each.steps, reverse=True):
        if (result := member.run.finished()) is not None:
            return EarlierRun(member.run, result.steps, member.steps, member.steps_per_epoch)
    return None


def take_over(run: RunFolder, candidates: Mapping[EarlierRun, str]) -> events.Continued | None:
    """Take over the first undamaged one of ``candidates``, each with a message about it, into ``run``.

    Returns the event that was added to the log of ``run``; None if all are damaged.

    The caller holds the lock of ``run``. The state comes last: a process that is killed before it starts again from the beginning.
    """
    for earlier, message in candidates.items():
        with suppress(OSError, ValueError):  # damaged, or deleted by another process
            states.require_undamaged_state(earlier.state, earlier.run.identity)
            _take_loras(run, earlier)
            taken = [event for event in read_events(earlier.run.events) if _belongs(event, earlier.step)]
            _take_samples(run, earlier, taken)
            continued = events.Continued(earlier.run.path.name, earlier.step, message)
            _take_log(run, taken, continued)
            if not run.started.exists() and earlier.run.started.is_file():
                write_atomic(run.started, earlier.run.started.read_bytes())
            states.adopt(earlier.state, run.checkpoints, run=run.identity)
            return continued
    return None


def forget(run: RunFolder) -> None:
    """Delete everything that ``run`` trained so far, so that it starts at its first step. The caller holds its lock."""
    for folder in (run.checkpoints, run.samples, run.path / "tensorboard"):
        if not is_link(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for file in (run.result, run.events, run.started, run.lora, run.loss_curve):
        file.unlink(missing_ok=True)


def _members(run: RunFolder, lineage: str) -> Iterator[_Member]:
    """The other runs of a lineage that lie beside ``run``."""
    for folder in sorted(run.path.parent.glob("*-*")):
        if folder != run.path and not is_link(folder) and (member := _member(RunFolder(folder, ""), lineage)) is not None:
            yield member


def _member(run: RunFolder, lineage: str) -> _Member | None:
    """``run`` with the name of its LoRA, if it belongs to ``lineage``."""
    try:
        record = read_sealed(run.lineage)
        if record["lineage"] != lineage:
            return None
        name = json.loads(run.config.read_bytes())["name"]
        return _Member(RunFolder(run.path, str(name)), int(record["steps"]), int(record["steps_per_epoch"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _take_loras(run: RunFolder, earlier: EarlierRun) -> None:
    """The LoRA files that were saved up to the step, under the name of ``run``."""
    for folder in states.state_folders(earlier.run.checkpoints):
        number = folder.name.removeprefix("step-")
        lora = folder / f"{safe_name(earlier.run.name)}-{number}.safetensors"
        if not number.isdecimal() or int(number) > earlier.step or not lora.is_file() or is_link(lora):
            continue
        target = states.state_folder(run.checkpoints, int(number)) / f"{safe_name(run.name)}-{number}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link_or_copy(lora, target)
            copy_record(lora, target)


def _take_samples(run: RunFolder, earlier: EarlierRun, taken: list[events.Event]) -> None:
    """The validation images that the events ``taken`` name."""
    run.samples.mkdir(parents=True, exist_ok=True)
    for name in {Path(event.path).name for event in taken if isinstance(event, events.Sample)}:
        image, target = earlier.run.samples / name, run.samples / name
        if image.is_file() and not is_link(image) and not target.exists():
            link_or_copy(image, target)


def _take_log(run: RunFolder, taken: list[events.Event], continued: events.Continued) -> None:
    """The events ``taken`` after those that ``run`` has, with the paths of ``run``, and last the one that it continued."""
    log = [*read_events(run.events), *(_moved(event, run) for event in taken), continued]
    write_atomic(run.events, "".join(f"{events.encode_event(event)}\n" for event in log))


def _belongs(event: events.Event, last_step: int) -> bool:
    return not isinstance(event, _NOT_TAKEN) and getattr(event, "step", 0) <= last_step


def _moved(event: events.Event, run: RunFolder) -> events.Event:
    if isinstance(event, events.Sample):
        return replace(event, path=str(run.samples / Path(event.path).name))
    if isinstance(event, events.Checkpoint):
        folder = states.state_folder(run.checkpoints, event.step)
        return replace(event, path=str(folder), lora=str(folder / f"{safe_name(run.name)}-{event.step:06d}.safetensors"))
    return event
