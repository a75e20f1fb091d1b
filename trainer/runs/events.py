"""The event stream between the training child and whoever started it: one JSON object a line.

One schema serves child, parent, progress bar and the log file ``events.jsonl`` in the run folder.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Union

from pydantic import Discriminator, StrictInt, StrictStr, Tag, TypeAdapter

from ..core.messages import Message, from_json
from .json_types import Number
from .run_plan import RunPlan


@dataclass(frozen=True)
class Event:
    """Base of all events. ``time`` is seconds since the epoch; ``clock`` is seconds of a clock that nobody sets, which is the same for all
    processes of a machine until it is switched off, and 0 in logs of earlier versions."""

    name: ClassVar[str] = ""
    time: Number = field(default_factory=lambda: time.time(), kw_only=True)
    clock: Number = field(default_factory=lambda: time.monotonic(), kw_only=True)


@dataclass(frozen=True)
class Plan(Event, RunPlan):
    """What the run will do, sent once before the models are loaded."""

    name: ClassVar[str] = "plan"

    @classmethod
    def of(cls, plan: RunPlan) -> Plan:
        """The event that reports ``plan``."""
        return cls(**vars(plan))


SAVING = "saving"  # the phase of a child that was asked to stop
WAITING = "waiting for another process that trains the same run"


@dataclass(frozen=True)
class Phase(Event):
    """A stage began or moved on: ``loading``, ``caching latents``, ``caching prompts``, ``training``, ``validating``, ``sampling``,
    ``exporting``, and ``saving`` (SAVING): asked to stop, the child writes the state that the run will go on from. WAITING comes from the
    parent."""

    name: ClassVar[str] = "phase"
    phase: StrictStr
    done: StrictInt = 0
    total: StrictInt = 0


@dataclass(frozen=True)
class Step(Event):
    """One optimiser step: ``loss`` is its mean over the accumulated micro-batches, ``eta`` in seconds, memory in GB."""

    name: ClassVar[str] = "step"
    step: StrictInt
    steps: StrictInt
    epoch: StrictInt
    loss: Number
    loss_average: Number
    lr: Number
    grad_norm: Number
    images_per_second: Number
    eta: Number
    memory_gb: Number
    weight_norm: Number | None = None  # mean over the modules of the norm of scale * up * down; None: not measured at this step
    weight_norm_max: Number | None = None


@dataclass(frozen=True)
class Validation(Event):
    """The loss of the pictures that are held out, always at the same timesteps with the same noise. ``epoch`` 0 is the base.

    ``loss`` is the plain mean squared error, whatever the objective's settings are; ``by_timestep`` has its parts.
    """

    name: ClassVar[str] = "validation"
    step: StrictInt
    epoch: StrictInt
    loss: Number
    pictures: StrictInt
    by_timestep: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample(Event):
    """A validation image was written. ``epoch`` 0 is the base before training."""

    name: ClassVar[str] = "sample"
    path: StrictStr
    prompt: StrictStr
    epoch: StrictInt
    step: StrictInt
    index: StrictInt


@dataclass(frozen=True)
class Checkpoint(Event):
    """A state that the run can resume from was written, with a LoRA file that can be used already."""

    name: ClassVar[str] = "checkpoint"
    step: StrictInt
    path: StrictStr
    lora: StrictStr


@dataclass(frozen=True)
class Warning_(Event):
    """Something the user should know, which does not end the run."""

    name: ClassVar[str] = "warning"
    message: StrictStr


@dataclass(frozen=True)
class Done(Event):
    """The run is complete; ``lora`` is the exported file, ``loss_curve`` a picture."""

    name: ClassVar[str] = "done"
    lora: StrictStr
    loss_curve: StrictStr
    steps: StrictInt
    seconds: Number
    loss: Number


@dataclass(frozen=True)
class Error(Event):
    """The run failed; ``kind`` is a short stable word, ``hint`` what the user can change."""

    name: ClassVar[str] = "error"
    kind: StrictStr
    message: StrictStr
    hint: StrictStr


@dataclass(frozen=True)
class Stopped(Event):
    """The run was asked to stop and kept a state to resume from (``step`` 0: nothing was trained yet)."""

    name: ClassVar[str] = "stopped"
    step: StrictInt
    path: StrictStr


_ALL: tuple[type[Event], ...] = (Plan, Phase, Step, Validation, Sample, Checkpoint, Warning_, Done, Error, Stopped)
TYPES: dict[str, type[Event]] = {cls.name: cls for cls in _ALL}


def encode_event(event: Event) -> str:
    """One line of JSON without the newline. ``parts`` holds the parts of each message that names settings, files or actions."""
    data = {"event": event.name, **_finite(asdict(event))}
    parts = {name: value.to_json() for name, value in data.items() if isinstance(value, Message) and value.mentions}
    return json.dumps({**data, "parts": parts} if parts else data, ensure_ascii=True, allow_nan=False)


def decode_event(line: str) -> Event | None:
    """The event on a line; None if the line holds none, such as a library's message, or half a line of a killed child.

    Unknown fields are dropped, so that an older parent can read a newer child's log.
    """
    try:
        data = json.loads(line)  # not pydantic's parser, which refuses the surrogates in file names that are not UTF-8
        event = _adapter().validate_python({"clock": 0.0, **data}) if isinstance(data, dict) else None
    except (ValueError, RecursionError):  # pydantic's ValidationError is a ValueError
        return None
    return None if event is None else _with_messages(event, data.get("parts"))


def _with_messages(event: Event, parts: object) -> Event:
    """``event`` with messages for its texts that ``parts`` divides into words and what they name."""
    messages: dict[str, Any] = {}
    for name, data in parts.items() if isinstance(parts, dict) else ():
        with suppress(ValueError):
            message = from_json(data)
            if message == getattr(event, name, None):
                messages[name] = message
    return replace(event, **messages) if messages else event


@cache
def _adapter() -> TypeAdapter[Any]:
    """Chooses the class by the field ``event``."""
    tagged = tuple(Annotated[cls, Tag(name)] for name, cls in TYPES.items())
    union: Any = Annotated[Union[tagged], Discriminator(lambda data: data.get("event"))]  # noqa: UP007 (a computed union)
    return TypeAdapter(union)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, dict) else _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
