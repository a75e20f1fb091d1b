"""Reading the event log of a run: all events, those of one kind, losses by step, validation images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..core.files.reading import open_regular, read_regular
from . import events

EventT = TypeVar("EventT", bound=events.Event)
_MAX_LOG = 1 << 31  # bytes
_END = 1 << 14  # bytes at each end of a log that ``read_ends`` reads


@dataclass(frozen=True)
class SampleImage:
    """A validation image; ``epoch`` 0 is the base model before training."""

    path: Path
    prompt: str
    epoch: int
    step: int
    index: int


def read_samples(path: Path) -> tuple[SampleImage, ...]:
    """The validation images that an event log names and that still exist, ordered by epoch and prompt."""
    images: dict[tuple[int, int], SampleImage] = {}
    for event in read_events_of(path, events.Sample):
        if Path(event.path).is_file():
            images[event.epoch, event.index] = SampleImage(Path(event.path), event.prompt, event.epoch, event.step, event.index)
    return tuple(images[key] for key in sorted(images))


def read_events(path: Path) -> list[events.Event]:
    """All events of a log; lines that are not events are skipped. Empty if there is no log, or something else in its place."""
    return [event for line in _lines(path) if (event := events.decode_event(line)) is not None]


def read_events_of(path: Path, kind: type[EventT]) -> list[EventT]:
    """The events of one kind in a log. Other lines are not parsed: a log can have tens of thousands of steps."""
    name = f'"{kind.name}"'
    return [event for line in _lines(path) if name in line and isinstance(event := events.decode_event(line), kind)]


def read_ends(path: Path) -> tuple[events.Event | None, list[str]]:
    """The first event of a log, and the whole lines in its last 16 KB: some fifty events. (None, []) if there is no log."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            head = file.read(_END)
            start = max(0, file.seek(0, os.SEEK_END) - _END)
            file.seek(start)
            tail = file.read(_END).decode("utf-8", "replace").splitlines()
    except OSError:
        return None, []
    decoded = (events.decode_event(line) for line in head.decode("utf-8", "replace").splitlines())
    return next((event for event in decoded if event is not None), None), tail[1:] if start else tail


def _lines(path: Path) -> list[str]:
    try:
        return read_regular(path, _MAX_LOG).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def validation_history(path: Path) -> list[events.Validation]:
    """The validation losses of a log by step; if a resumed run measured one again, the later one counts."""
    by_step = {event.step: event for event in read_events_of(path, events.Validation)}
    return [by_step[step] for step in sorted(by_step)]


def loss_history(path: Path) -> list[events.Step]:
    """The step events of a log by step; if a resumed run took a step again, the later one counts."""
    by_step = {event.step: event for event in read_events_of(path, events.Step)}
    return [by_step[step] for step in sorted(by_step)]
