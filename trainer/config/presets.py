"""Presets of a run: recommended values for what the LoRA should learn and the kind of model it is trained on.

``preset = "style-sd15"`` in a configuration sets the keys that it leaves out; explicit values win. The learning rates are those of
``optimizers.learning_rate``; every other value has its reason here. Canvas, command line and documentation read this table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from ..core.messages import Message, Setting

KEY = "preset"
NONE = "none"


@dataclass(frozen=True)
class Value:
    """The value of a preset for ``key``, and the reason."""

    key: str
    value: Any
    reason: str


# a style; one character; one object, pose or piece of clothing
SUBJECTS = ("style", "character", "concept")
_OF_DIFFUSION = ("objective.min_snr_gamma", "objective.noise_offset")  # have no meaning for a rectified flow
MODELS = ("sd15", "sdxl", "anima", "lumina2")  # the kinds of model that presets are made for: `Family.preset_group`

# The values of each group of presets. Later groups are more specific and win.
LAYERS: tuple[tuple[str, tuple[Value, ...]], ...] = (
    (
        "every preset",
        (
            Value("optimizer.schedule", "cosine", "the last steps are small, so that training ends settled"),
            Value("objective.min_snr_gamma", 5.0, "the paper's value: lines and layout are weighted evenly, and both are learned sooner"),
            Value("training.batch_size", 1, "fits the smallest GPUs"),
            Value("training.gradient_accumulation", 4, "four images per step, so that one odd image does not set the direction"),
            Value("training.memory", "auto", "saves memory at the cost of speed only if your GPU needs it"),
        ),
    ),
    (
        "style",
        (
            Value("training.epochs", 10, "a style has many images, which all teach the same thing"),
            Value("network.rank", 16, "enough for line, colour and shading"),
            Value("network.alpha", 16.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear+conv", "brushwork, lines and grain are learned in the convolutions"),
        ),
    ),
    (
        "character",
        (
            Value("training.epochs", 15, "a character has few images, so each is needed more often"),
            Value("network.rank", 16, "a face, hair and clothes in detail"),
            Value("network.alpha", 16.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear", "characters are learned in the transformers; the base model's look stays"),
        ),
    ),
    (
        "concept",
        (
            Value("training.epochs", 10, "a single thing is learned quickly"),
            Value("network.rank", 8, "a single thing needs little capacity, and a small LoRA memorises less"),
            Value("network.alpha", 8.0, "the scale alpha / rank is 1, as the learning rates assume"),
            Value("network.targets", "all-linear", "content is learned in the transformers; the base model's look stays"),
            Value("network.dropout", 0.1, "the LoRA should learn the thing, not the few backgrounds around it"),
        ),
    ),
    ("sd15", (Value("optimizer.lr", 1e-4, "the rate that `auto` chooses for SD 1.x"),)),
    ("sdxl", (Value("optimizer.lr", 5e-5, "the rate that `auto` chooses for SDXL's larger UNet"),)),
    (
        "anima",
        (
            Value("optimizer.lr", 1e-4, "the rate that `auto` chooses for Anima"),
            Value("objective.min_snr_gamma", 0.0, "a rectified flow has no signal-to-noise ratios to weigh by"),
            Value("objective.timestep_sampling", "logit-normal", "the recipe of Anima's author: the middle noise levels teach most"),
            Value("objective.logit_std", 1.3, "the recipe of Anima's author: wide enough to train composition and detail too"),
            Value("network.targets", "all-linear", "Anima has no convolutions"),
            Value("sample.guidance", 4.0, "what Anima is sampled with in ComfyUI"),
        ),
    ),
    (
        "lumina2",
        (
            Value("optimizer.lr", 1e-4, "the rate that `auto` chooses for Lumina 2"),
            Value("objective.min_snr_gamma", 0.0, "a rectified flow has no signal-to-noise ratios to weigh by"),
            Value("objective.timestep_shift", 3.16, "what kohya's recommended `nextdit_shift` is at 1024 x 1024: composition counts more"),
            Value("network.targets", "all-linear", "Lumina 2 has no convolutions"),
            Value("sample.guidance", 4.0, "that of ComfyUI's template for NetaYume Lumina"),
            Value("sample.shift", 4.0, "that of ComfyUI's template for NetaYume Lumina"),
        ),
    ),
    ("style-sd15", (Value("objective.noise_offset", 0.03, "SD 1.5 alone can paint neither night nor glare, which styles may need"),)),
)


def names() -> list[str]:
    """Every preset's name, ``style-sd15``."""
    return [f"{subject}-{model}" for model in MODELS for subject in SUBJECTS]


def values(name: str) -> dict[str, Any]:
    """Keys and values of a preset. Raises UserError for an unknown name."""
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
        raise UserError(
            f"The preset {name} is made for another kind of model than this checkpoint.",
            Message("Choose ", Setting(KEY, meant), "."),
            kind="config",
        )


def expanded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration ``data`` with the values of its preset in place of the key ``preset``; keys that ``data`` sets stay. Where it sets
    ``objective.prediction`` to flow, values that only a diffusion has are left out."""
    result = dict(data)
    name = result.pop(KEY, NONE)
    if name == NONE:
        return result
    objective = result.get("objective", {})
    is_flow = isinstance(objective, Mapping) and objective.get("prediction") == "flow"
    for key, value in values(name).items():
        if is_flow and key in _OF_DIFFUSION:
            continue
        section, last = key.split(".")
        table = result.get(section, {})
        if isinstance(table, Mapping):  # anything else is reported by the validation
            result[section] = {last: value, **table}
    return result


def table() -> str:
    """All values with their reasons as a Markdown table, for the documentation and ``train --presets``."""
    rows = ["| For | Key | Value | Why |", "| --- | --- | --- | --- |"]
    rows += [f"| {group} | `{item.key}` | `{_shown(item.value)}` | {item.reason} |" for group, items in LAYERS for item in items]
    return "\n".join(rows)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"
