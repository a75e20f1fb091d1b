"""How long a run will take, from the logs of earlier runs on this machine that trained the same checkpoint on the same device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..config.run_config import RunConfig
from ..core.files.paths import expand_home
from ..core.files.reading import file_stamp
from ..runs import events
from ..runs.event_log import read_events
from ..runs.run_folder import RunFolder
from ..runs.run_plan import RunPlan

_MOST_RUNS = 40  # of the newest ones that are looked at
_LEAST_STEPS = 2  # measured steps that an estimate needs
_SAME = (("base", "checkpoint"), ("training", "processes"))  # settings that a measured run has to share
_ALIKE = (  # settings by which the most similar of the measured runs is chosen
    ("training", "gradient_checkpointing"),
    ("training", "base_precision"),
    ("training", "compile"),
    ("training", "micro_batch_size"),
    ("network", "targets"),
    ("network", "text_encoder"),
    ("network", "dora"),
    ("network", "rank"),
    ("sample", "prompts"),
    ("sample", "every_epochs"),
    ("sample", "steps"),
)


@dataclass(frozen=True)
class TimeEstimate:
    """``seconds`` that a run will take, and the name of the run folder whose log they were worked out from."""

    seconds: float
    run: str


@dataclass(frozen=True)
class _Pace:
    """What one start of a run took, in seconds: until its first step, for a step, and for what else happens in an epoch."""

    device: str
    precision: str
    before_first_step: float
    step: float
    rest_of_epoch: float
    pixels_per_step: float


def estimate_time(config: RunConfig, plan: RunPlan, start_step: int = 0) -> TimeEstimate | None:
    """The time for the steps of ``plan`` after ``start_step``; None if no earlier run on this machine allows an estimate.

    A step takes time in proportion to the pixels that it trains on. ``config`` has absolute paths, as in a run folder.
    """
    ours = config.model_dump(mode="json")
    measured: list[tuple[int, str, _Pace]] = []
    for folder in _newest(expand_home(config.output.runs)):
        theirs = RunFolder(folder, "").read_config()
        if any(_value(theirs, key) != _value(ours, key) for key in _SAME):
            continue
        pace = _pace(folder)
        if pace is not None and (pace.device, pace.precision) == (plan.device, plan.precision):
            measured.append((sum(_value(theirs, key) == _value(ours, key) for key in _ALIKE), folder.name, pace))
    if not measured:
        return None
    _, run, pace = max(measured, key=lambda each: each[0])  # the newest of those that are most alike
    steps = max(0, plan.steps - start_step)
    step = pace.step * _pixels_per_step(plan) / pace.pixels_per_step
    seconds = pace.before_first_step + steps * step + steps / plan.steps_per_epoch * pace.rest_of_epoch
    return TimeEstimate(round(seconds, 1), run)


def _pixels_per_step(plan: RunPlan) -> float:
    """The mean number of pixels that a step trains on."""
    pixels = 0
    for size, count in plan.buckets.items():
        width, _, height = size.partition("x")
        pixels += int(width) * int(height) * count
    return pixels / plan.steps_per_epoch


def _newest(runs: Path) -> list[Path]:
    """The run folders below ``runs`` whose log changed last, the newest first."""
    logs: list[tuple[float, Path]] = []
    for log in runs.glob("*-*/events.jsonl"):
        with suppress(OSError):
            logs.append((log.stat().st_mtime, log.parent))
    return [folder for _, folder in sorted(logs, reverse=True)[:_MOST_RUNS]]


def _value(data: Mapping[str, Any], key: tuple[str, str]) -> Any:
    section = data.get(key[0])
    return section.get(key[1]) if isinstance(section, Mapping) else None


def _pace(folder: Path) -> _Pace | None:
    """The pace of the longest start in the log of a run; None if too few steps were measured."""
    log = RunFolder(folder, "").events
    with suppress(OSError):
        return _pace_of(log, file_stamp(log))
    return None


@lru_cache(maxsize=256)
def _pace_of(log: Path, stamp: str) -> _Pace | None:
    """``stamp`` changes with the log."""
    paces = [(len(_steps(start)), pace) for start in _starts(read_events(log)) if (pace := _pace_of_start(start)) is not None]
    return max(paces, key=lambda each: each[0])[1] if paces else None


def _starts(log: Sequence[events.Event]) -> list[list[events.Event]]:
    """The events of each start of a run, which begins with its plan."""
    starts: list[list[events.Event]] = []
    for event in log:
        if isinstance(event, events.Plan):
            starts.append([])
        elif isinstance(event, events.Continued):
            starts.append([])  # what precedes it happened in another run
        if starts:
            starts[-1].append(event)
    return starts


def _steps(start: Sequence[events.Event]) -> list[events.Step]:
    return [event for event in start if isinstance(event, events.Step)]


def _pace_of_start(start: Sequence[events.Event]) -> _Pace | None:
    plan, steps = start[0], _steps(start)
    if not isinstance(plan, events.Plan) or not steps or not all(event.clock for event in start):
        return None
    pairs = list(pairwise(start))
    step_seconds = [
        later.clock - earlier.clock for earlier, later in pairs if isinstance(earlier, events.Step) and isinstance(later, events.Step)
    ]
    paused = sum(
        later.clock - earlier.clock for earlier, later in pairs if isinstance(earlier, events.Phase) and earlier.phase == events.PAUSED
    )
    pixels = _pixels_per_step(plan)
    if len(step_seconds) < _LEAST_STEPS or min(step_seconds) < 0 or pixels <= 0:
        return None
    step = statistics.median(step_seconds)
    first = steps[0].clock - plan.clock
    rest = start[-1].clock - steps[0].clock - paused - step * (len(steps) - 1)
    return _Pace(plan.device, plan.precision, first, step, max(0.0, rest) / (len(steps) / plan.steps_per_epoch), pixels)
