"""Where a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from ...runs.run_folder import RunFolder
from ..event_writer import EventLog
from .trackers import Trackers


@dataclass(frozen=True)
class Outputs:
    """The run folder, the event log in it, and trackers."""

    run: RunFolder
    emit: EventLog
    trackers: Trackers
