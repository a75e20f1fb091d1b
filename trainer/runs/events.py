"""The event stream from the training child to its parent: one JSON object per line.

Child, parent, progress bar and the log file ``events.jsonl`` in the run folder share this schema.
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
    """Base of all events. ``time`` is in seconds since 1970. ``clock`` is in seconds of the monotonic clock, which all processes of a
    machine share until it is switched off; 0 in logs of earlier versions."""

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


@dataclass(frozen=True)
class Continued(Event):
    """The run took over the state after ``step`` from an earlier run, the one in the folder named ``run``; ``message`` says so in words.

    The log up to here is that run's, as if this run had trained those steps itself.
    """

    name: ClassVar[str] = "continued"
    run: StrictStr
    step: StrictInt
    message: StrictStr


@dataclass(frozen=True)
class Requested(Event):
    """A request of the parent (see ``controls.py``) was taken up after ``step``; ``prompts`` are those of edit_prompts."""

    name: ClassVar[str] = "requested"
    action: StrictStr
    step: StrictInt
    prompts: list[StrictStr] = field(default_factory=list)


PAUSED = "paused"  # phase of a child that was asked to wait
SAVING = "saving"  # phase of a child that was asked to stop
WAITING = "waiting for another process that trains the same run"


@dataclass(frozen=True)
class Phase(Event):
    """A phase began or made progress: ``loading``, ``caching latents``, ``caching prompts``, ``training``, ``validating``, ``sampling``,
    ``exporting``, PAUSED, or SAVING, in which a child that was asked to stop writes the state to resume from.

    WAITING comes from the parent."""

    name: ClassVar[str] = "phase"
    phase: StrictStr
    done: StrictInt = 0
    total: StrictInt = 0


@dataclass(frozen=True)
class Step(Event):
    """One optimiser step. ``loss`` is the mean over the accumulated micro-batches; ``eta`` is in seconds, memory in GB."""

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
    weight_norm: Number | None = None  # mean over modules of the norm of scale * up @ down; None: not measured at this step
    weight_norm_max: Number | None = None


@dataclass(frozen=True)
class Validation(Event):
    """The loss on the held-out images, always at the same timesteps and with the same noise. ``epoch`` 0 is the base model.

    ``loss`` is the plain mean squared error, whatever the objective's settings; ``by_timestep`` has it for each timestep. ``pictures`` is
    the number of held-out images.
    """

    name: ClassVar[str] = "validation"
    step: StrictInt
    epoch: StrictInt
    loss: Number
    pictures: StrictInt
    by_timestep: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample(Event):
    """A validation image was written. ``epoch`` 0 is the base model before training."""

    name: ClassVar[str] = "sample"
    path: StrictStr
    prompt: StrictStr
    epoch: StrictInt
    step: StrictInt
    index: StrictInt


@dataclass(frozen=True)
class Checkpoint(Event):
    """A state to resume from was written, and beside it a LoRA file that can already be used."""

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
    """The run is complete. ``lora`` is the path of the exported file, ``loss_curve`` that of an image."""

    name: ClassVar[str] = "done"
    lora: StrictStr
    loss_curve: StrictStr
    steps: StrictInt
    seconds: Number
    loss: Number


@dataclass(frozen=True)
class Error(Event):
    """The run failed. ``kind`` is a short word that stays the same between versions; ``hint`` says what the user can change."""

    name: ClassVar[str] = "error"
    kind: StrictStr
    message: StrictStr
    hint: StrictStr


@dataclass(frozen=True)
class Stopped(Event):
    """The run was stopped; ``path`` is the state to resume from. With ``step`` 0 nothing was trained yet and there is none."""

    name: ClassVar[str] = "stopped"
    step: StrictInt
    path: StrictStr


_ALL: tuple[type[Event], ...] = (Plan, Continued, Requested, Phase, Step, Validation, Sample, Checkpoint, Warning_, Done, Error, Stopped)
TYPES: dict[str, type[Event]] = {cls.name: cls for cls in _ALL}


def encode_event(event: Event) -> str:
    """One line of JSON without the newline. Its field ``parts`` has the parts of messages that name settings, files or actions."""
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
    """``event`` with its texts as messages where ``parts`` has their parts."""
    messages: dict[str, Any] = {}
    for name, data in parts.items() if isinstance(parts, dict) else ():
        with suppress(ValueError):
            message = from_json(data)
            if message == getattr(event, name, None):
                messages[name] = message
    return replace(event, **messages) if messages else event


@cache
def _adapter() -> TypeAdapter[Any]:
    """The validator that picks the class by the field ``event``; building it takes some 50 ms."""
    tagged = tuple(Annotated[cls, Tag(name)] for name, cls in TYPES.items())
    union: Any = Annotated[Union[tagged], Discriminator(lambda data: data.get("event"))]  # noqa: UP007 (a computed union)
    return TypeAdapter(union)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, dict) else _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
