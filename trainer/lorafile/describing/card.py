"""The card of a LoRA: what a user wants to know before using it, in a size that suits a browser.

It is made from the file's tensors, from its metadata in any trainer's conventions (kohya's ``ss_*``, Stability's ``modelspec.*``), and from
the files beside it. It holds text, numbers and one small JPEG, however large or odd the file's own data are.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ..metadata_values import text_value
from ..naming.family_layouts import FAMILY_TITLES
from ..thumbnail import to_data_url
from .information import LoraInfo, inspect_lora, plausible_words
from .sidecar import Notes, notes, preview

_LONGEST = 200  # characters of a value
_LONGEST_TEXT = 1500  # characters of a description
_MOST_WORDS = 32
_MOST_TAGS = 16


@dataclass(frozen=True)
class Card:
    """``thumbnail`` is a JPEG data URL or empty, ``family`` the title of the model family, ``training`` the known training settings in
    reading order, ``tags`` the most frequent tags of the captions with their counts, ``problem`` the reason why a file cannot be used."""

    title: str
    family: str = ""
    base: str = ""
    rank: int | None = None
    alpha: float | None = None
    algorithm: str = ""
    precision: str = ""
    layers: int = 0
    trigger_words: tuple[str, ...] = ()
    tags: tuple[tuple[str, int], ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    author: str = ""
    licence: str = ""
    strength: float | None = None
    thumbnail: str = ""
    size: int = 0
    modified: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """The card as plain data."""
        return asdict(self)


def card(path: Path) -> Card:
    """The card of the LoRA file at ``path``, even if it cannot be read. Raises OSError when it does not exist."""
    status = path.stat()
    beside = notes(path)
    try:
        info: LoraInfo | None = inspect_lora(path)
        problem = ""
    except UserError as error:
        info, problem = None, str(error)
    metadata = info.metadata if info else {}
    if info and not info.usable:
        problem = "; ".join(info.problems)
    picture = (info.thumbnail if info else None) or preview(path)
    words = _words(info, beside)
    return Card(
        title=_short(_title(info, beside, path)),
        family=_short(_family(info, beside)),
        base=_short(info.base if info else ""),
        rank=info.rank if info else None,
        alpha=_finite(info.alpha) if info else None,
        algorithm=_algorithm(info),
        precision=info.dtype if info else "",
        layers=sum(info.targets.values()) if info else 0,
        trigger_words=tuple(_short(word) for word in words[:_MOST_WORDS]),
        tags=tuple((_short(tag), count) for tag, count in (info.tags if info else ())[:_MOST_TAGS]),
        training=training(metadata),
        description=(text_value(metadata, "modelspec.description") or beside.description)[:_LONGEST_TEXT],
        author=_short(text_value(metadata, "modelspec.author")),
        licence=_short(text_value(metadata, "modelspec.license")),
        strength=beside.strength,
        thumbnail=to_data_url(picture) if picture else "",
        size=status.st_size,
        modified=datetime.datetime.fromtimestamp(status.st_mtime, tz=datetime.timezone.utc).date().isoformat(),
        problem=problem[:_LONGEST_TEXT],
    )


def unread(path: Path, problem: str) -> Card:
    """The card of a file that was not read, with the reason."""
    return Card(_short(path.stem), problem=problem[:_LONGEST_TEXT])


def called_by(info: LoraInfo) -> tuple[str, ...]:
    """The trigger words of a LoRA: from its metadata, otherwise from notes beside the file, otherwise the tags of nearly all captions."""
    return _words(info, notes(info.path))


def training(metadata: Mapping[str, str]) -> dict[str, str]:
    """The training settings in the metadata under fixed names; unknown ones are left out."""
    found = {
        "steps": text_value(metadata, "ss_steps") or text_value(metadata, "ss_max_train_steps"),
        "epochs": text_value(metadata, "ss_epoch") or text_value(metadata, "ss_num_epochs"),
        "images": text_value(metadata, "ss_num_train_images"),
        "resolution": _resolution(text_value(metadata, "ss_resolution") or text_value(metadata, "modelspec.resolution")),
        "lr": _number(text_value(metadata, "ss_unet_lr") or text_value(metadata, "ss_learning_rate")),
        "text_encoder_lr": _number(text_value(metadata, "ss_text_encoder_lr")),
        "batch": text_value(metadata, "ss_total_batch_size") or text_value(metadata, "ss_batch_size_per_device"),
        "optimizer": _optimizer(text_value(metadata, "ss_optimizer")),
        "schedule": text_value(metadata, "ss_lr_scheduler"),
        "clip_skip": text_value(metadata, "ss_clip_skip"),
        "seed": text_value(metadata, "ss_seed"),
        "date": _date(metadata),
    }
    return {name: _short(text) for name, text in found.items() if text}


def _title(info: LoraInfo | None, beside: Notes, path: Path) -> str:
    stated = info.title if info else ""
    return (stated if stated != path.stem else "") or beside.title or path.stem


def _family(info: LoraInfo | None, beside: Notes) -> str:
    if info and info.family != "unknown":
        return FAMILY_TITLES.get(info.family, info.family)
    stated = (text_value(info.metadata, "modelspec.architecture") or text_value(info.metadata, "ss_base_model_version")) if info else ""
    return stated.removesuffix("/lora") or beside.base


def _algorithm(info: LoraInfo | None) -> str:
    if info is None:
        return ""
    return "DoRA" if info.dora else {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}.get(info.algorithm, info.algorithm)


def _words(info: LoraInfo | None, beside: Notes) -> tuple[str, ...]:
    found = info.trigger_words if info else ()
    stated = info is not None and bool(text_value(info.metadata, "modelspec.trigger_phrase"))
    return found if stated else plausible_words(beside.trigger_words) or found


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _resolution(text: str) -> str:
    """``(512, 768)``, ``512x768`` and ``512`` as ``512 × 768`` or ``512 × 512``."""
    sides = re.findall(r"\d{1,6}", text)[:2]
    return " × ".join(sides if len(sides) == 2 else sides * 2)


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return ""
    return f"{value:g}" if math.isfinite(value) else ""


def _optimizer(text: str) -> str:
    """``torch.optim.adamw.AdamW(weight_decay=0.01)`` as ``AdamW``."""
    return text.partition("(")[0].rpartition(".")[2]


def _date(metadata: Mapping[str, str]) -> str:
    """The day of training, as 2026-01-31; empty when the metadata has no readable date."""
    stated = re.match(r"\d{4}-\d{2}-\d{2}", text_value(metadata, "modelspec.date"))
    if stated:
        return stated[0]
    seconds = text_value(metadata, "ss_training_finished_at") or text_value(metadata, "ss_training_started_at")
    try:
        moment = float(seconds)
        return datetime.datetime.fromtimestamp(moment, tz=datetime.timezone.utc).date().isoformat() if moment > 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""
