"""The day a run started and how long it took, independent of changes of the system clock and of runs that pass midnight."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from ..core.files.sealed_json import read_sealed, write_sealed
from . import events
from .event_log import read_events
from .run_folder import RunFolder

_DAY = 86_400
_LONGEST_PAUSE = 7200.0  # seconds between two events of one start: the parent kills a child that is silent for longer


def start_day(run: RunFolder, *, record: bool) -> float:
    """Midnight UTC of the day on which the run first started (or of SOURCE_DATE_EPOCH, reproducible-builds.org), in seconds since 1970.

    LoRA files state the day of their training, not the second, and a run that is resumed or exported on another day states the same day, so
    that one configuration always gives the same bytes. ``record``: store the day if that was not done before.
    """
    if fixed := os.environ.get("SOURCE_DATE_EPOCH"):
        return _midnight(float(fixed))
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _midnight(float(read_sealed(run.started)["day"]))
    first = next(iter(read_events(run.events)), None)  # earlier versions did not store the day
    day = _midnight(time.time() if first is None else first.time)
    if record:
        write_sealed(run.started, {"day": day})
    return day


def training_seconds(log_path: Path) -> float:
    """The seconds that all starts of a run took in total, from the clocks in its event log."""
    log = read_events(log_path)
    # a start begins with the event before its plan; the time between two starts does not count
    starts = {index - 1 for index, event in enumerate(log) if isinstance(event, events.Plan)}
    # neither does a pause
    starts |= {index + 1 for index, event in enumerate(log) if isinstance(event, events.Phase) and event.phase == events.PAUSED}
    starts |= {index for index, event in enumerate(log) if isinstance(event, events.Continued)}
    return round(sum(_between(pair) for index, pair in enumerate(pairwise(log), start=1) if index not in starts), 3)


def _between(pair: Sequence[events.Event]) -> float:
    earlier, later = pair
    if earlier.clock and later.clock:
        return max(0.0, later.clock - earlier.clock)
    # logs of earlier versions have only the system time, which can be set back or forward
    return min(max(0.0, later.time - earlier.time), _LONGEST_PAUSE)


def _midnight(seconds: float) -> float:
    return seconds // _DAY * _DAY
