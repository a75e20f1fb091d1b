"""The event stream between the training child and whoever started it: one JSON object a line.

One schema serves child, parent, progress bar and the log file ``events.jsonl`` in the run folder.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Base of all events. ``time`` is seconds since the epoch; ``clock`` is seconds of a clock that nobody sets, which is the same for all
    processes of a machine until it is switched off, and 0 in logs of earlier versions."""

    name: ClassVar[str] = ""
    time: float = field(default_factory=lambda: time.time(), kw_only=True)
    clock: float = field(default_factory=lambda: time.monotonic(), kw_only=True)


@dataclass(frozen=True)
class Plan(Event):
    """What the run will do, sent once before anything heavy. ``buckets`` maps ``"512x512"`` to a count of images."""

    name: ClassVar[str] = "plan"
    images: int
    buckets: dict[str, int]
    epochs: int
    steps: int
    steps_per_epoch: int
    trainable_parameters: int
    modules: int
    family: str
    device: str
    precision: str
    memory_gb: float
    start_step: int = 0
    prediction: str = "epsilon"
    held_out: int = 0  # pictures that are not trained on
    memory: dict[str, float] = field(default_factory=dict)  # memory_gb by what it is for, see memory_estimate.py
    attention: str = "sdpa"
    prepacked: bool = False  # layers of the base on a CPU, see onednn_layers.py
    cuda_graphs: bool = False  # passes are recorded and replayed, see cuda_graphs.py
    fused: bool = False  # blocks of the UNet, see fused_blocks.py
    regularisation: str = ""  # a sentence about the share of regularisation images; empty without any


SAVING = "saving"  # the phase of a child that was asked to stop
WAITING = "waiting for another process that trains the same run"


@dataclass(frozen=True)
class Phase(Event):
    """A stage began or moved on: ``loading``, ``caching latents``, ``caching prompts``, ``training``, ``validating``, ``sampling``,
    ``exporting``, and ``saving`` (SAVING): asked to stop, the child writes the state that the run will go on from. WAITING comes from the
    parent."""

    name: ClassVar[str] = "phase"
    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Step(Event):
    """One optimiser step: ``loss`` is its mean over the accumulated micro-batches, ``eta`` in seconds, memory in GB."""

    name: ClassVar[str] = "step"
    step: int
    steps: int
    epoch: int
    loss: float
    loss_average: float
    lr: float
    grad_norm: float
    images_per_second: float
    eta: float
    memory_gb: float
    weight_norm: float | None = None  # mean over the modules of the norm of scale * up * down; None: not measured at this step
    weight_norm_max: float | None = None


@dataclass(frozen=True)
class Validation(Event):
    """The loss of the pictures that are held out, always at the same timesteps with the same noise. ``epoch`` 0 is the base.

    ``loss`` is the plain mean squared error, whatever the objective's settings are; ``by_timestep`` has its parts.
    """

    name: ClassVar[str] = "validation"
    step: int
    epoch: int
    loss: float
    pictures: int
    by_timestep: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample(Event):
    """A validation image was written. ``epoch`` 0 is the base before training."""

    name: ClassVar[str] = "sample"
    path: str
    prompt: str
    epoch: int
    step: int
    index: int


@dataclass(frozen=True)
class Checkpoint(Event):
    """A state that the run can resume from was written, with a LoRA file that can be used already."""

    name: ClassVar[str] = "checkpoint"
    step: int
    path: str
    lora: str


@dataclass(frozen=True)
class Warning_(Event):
    """Something the user should know, which does not end the run."""

    name: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Done(Event):
    """The run is complete; ``lora`` is the exported file, ``loss_curve`` a picture."""

    name: ClassVar[str] = "done"
    lora: str
    loss_curve: str
    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Error(Event):
    """The run failed; ``kind`` is a short stable word, ``hint`` what the user can change."""

    name: ClassVar[str] = "error"
    kind: str
    message: str
    hint: str


@dataclass(frozen=True)
class Stopped(Event):
    """The run was asked to stop and kept a state to resume from (``step`` 0: nothing was trained yet)."""

    name: ClassVar[str] = "stopped"
    step: int
    path: str


_ALL: tuple[type[Event], ...] = (Plan, Phase, Step, Validation, Sample, Checkpoint, Warning_, Done, Error, Stopped)
TYPES: dict[str, type[Event]] = {cls.name: cls for cls in _ALL}


def encode(event: Event) -> str:
    """One line of JSON without the newline. NaN and infinity, which JSON lacks, travel as strings and come back as floats."""
    return json.dumps({"event": event.name, **_finite(asdict(event))}, ensure_ascii=True, allow_nan=False)


def decode(line: str) -> Event | None:
    """The event on a line, or None when the line is not one (a library's print, half a line of a killed child).

    Unknown fields are dropped, so that an older parent reads a newer child's log.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        return None
    cls = TYPES.get(data["event"])
    if cls is None:
        return None
    try:
        values = {f.name: _value(data[f.name], str(f.type)) for f in fields(cls) if f.name in data}
        values.setdefault("clock", 0.0)
        return cls(**values)
    except (TypeError, OverflowError):  # a field is missing, or of another type than declared: a log can come from anyone
        return None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, dict) else _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _value(value: Any, declared: str) -> Any:
    """``value``, as JSON gave it, for a field that is ``declared`` so. Raises TypeError for one of another type."""
    if declared.endswith(" | None"):
        return None if value is None else _value(value, declared.removesuffix(" | None"))
    if declared.startswith("dict[str, ") and isinstance(value, dict):
        return {key: _value(part, declared[10:-1]) for key, part in value.items()}
    if declared == "float" and (value in ("nan", "inf", "-inf") or type(value) in (int, float)):
        return float(value)
    if type(value).__name__ != declared:  # by its name: True is an int, too
        raise TypeError(f"{value!r} is no {declared}")
    return value
