"""Presets of a run: what shall be learned, on which family of models, as values for the configuration's keys. Explicit values win.

``preset = "style-sd15"`` in a configuration fills in what it does not say itself. The learning rates are the trainer's own for the family
(``optimizers.learning_rate``); each other value says why. This is the one place: canvas, command line and documentation read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError

KEY = "preset"
NONE = "none"


@dataclass(frozen=True)
class Value:
    """What a preset puts into ``key``, and why."""

    key: str
    value: Any
    reason: str


# what is learned: any style, one character, one object, pose or piece of clothing
SUBJECTS = ("style", "character", "concept")
MODELS = ("sd15", "sdxl")  # the kinds of model that presets are made for: `Family.preset_group`

# Who gets which values; the more special come later and win.
LAYERS: tuple[tuple[str, tuple[Value, ...]], ...] = (
    (
        "every preset",
        (
            Value("optimizer.schedule", "cosine", "the last steps are small, so that the file ends settled and not in mid-swing"),
            Value("objective.min_snr_gamma", 5.0, "the paper's value: line and layout teach evenly, and both are learned sooner"),
            Value("training.batch_size", 1, "fits the smallest cards"),
            Value("training.gradient_accumulation", 4, "four pictures a step: one odd picture does not set the direction"),
            Value("training.memory", "auto", "saves memory, at the price of speed, only where your graphics card needs it"),
        ),
    ),
    (
        "style",
        (
            Value("training.epochs", 10, "styles have many pictures, each of which teaches the same thing"),
            Value("network.rank", 16, "enough for line, colour and shading"),
            Value("network.alpha", 16.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear+conv", "brush, line and grain live in the convolutions"),
        ),
    ),
    (
        "character",
        (
            Value("training.epochs", 15, "a character has few pictures, so each is needed more often"),
            Value("network.rank", 16, "a face, hair and clothes in detail"),
            Value("network.alpha", 16.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear", "who is shown lives in the transformers; the base model's look stays"),
        ),
    ),
    (
        "concept",
        (
            Value("training.epochs", 10, "one thing is learned soon"),
            Value("network.rank", 8, "one thing needs little room, and what does not fit is not learned by heart"),
            Value("network.alpha", 8.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear", "what is shown lives in the transformers; the base model's look stays"),
            Value("network.dropout", 0.1, "the thing shall be learned, not the few backgrounds around it"),
        ),
    ),
    ("sd15", (Value("optimizer.lr", 1e-4, "the trainer's own rate for SD 1.x"),)),
    ("sdxl", (Value("optimizer.lr", 5e-5, "the trainer's own rate for SDXL's larger UNet"),)),
    ("style-sd15", (Value("objective.noise_offset", 0.03, "night and glare belong to a style, and SD 1.5 alone reaches neither"),)),
)


def names() -> list[str]:
    """Every preset's name, ``style-sd15``."""
    return [f"{subject}-{model}" for model in MODELS for subject in SUBJECTS]


def values(name: str) -> dict[str, Any]:
    """Keys and values of a preset. Raises UserError for a name that there is not."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.3)
        raise UserError(
            f"There is no preset {str(name)[:80]!r}" + (f"; did you mean {near[0]}?" if near else "."),
            f"Presets are {', '.join(names())}, or {NONE}.",
            kind="config",
        )
    subject, family = name.split("-")
    groups = ("every preset", subject, family, name)
    return {item.key: item.value for group, items in LAYERS if group in groups for item in items}


def require_model(name: str, group: str) -> None:
    """Raise UserError unless the preset ``name`` is made for models of ``group`` (one of ``MODELS``)."""
    if name == NONE:
        return
    subject, model = name.split("-")
    if model != group:
        meant = f"{subject}-{group}" if group in MODELS else NONE
        raise UserError(f"The preset {name} is made for another kind of model than this checkpoint.", f"Choose {meant}.", kind="config")


def expanded(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` of a configuration without its ``preset`` key, and with that preset's values for the keys that ``data`` does not say."""
    result = dict(data)
    name = result.pop(KEY, NONE)
    if name == NONE:
        return result
    for key, value in values(name).items():
        section, last = key.split(".")
        table = result.get(section, {})
        if isinstance(table, Mapping):  # what is none is an error of its own
            result[section] = {last: value, **table}
    return result


def table() -> str:
    """All values with their reasons as a Markdown table, for the documentation and ``train --presets``."""
    rows = ["| For | Key | Value | Why |", "| --- | --- | --- | --- |"]
    rows += [f"| {group} | `{item.key}` | `{_shown(item.value)}` | {item.reason} |" for group, items in LAYERS for item in items]
    return "\n".join(rows)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"
