"""Acting at a step of a run, and where it resumed."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.launch.helpers import when
from trainer.runs import events


def at(step: int, act: Callable[[], object]) -> Callable[[events.Event], None]:
    """Do ``act`` when a step has been done."""
    return when(lambda event: isinstance(event, events.Step) and event.step == step, lambda: (act(), None)[1])


def resumed_at(log: list[events.Event]) -> list[int]:
    return [event.start_step for event in log if isinstance(event, events.Plan)]
