"""The objects on the pack's own four sockets: paths and hashes, or settings as text, and never tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from comfy_api.latest import io

from ....trainer.core.errors import UserError
from ..schema import field


@dataclass(frozen=True)
class DatasetHandle:
    """A prepared dataset. ``hash`` covers pixels, captions and training hints; ``count`` is its number of images.

    ``more`` are datasets to train together with it, each with ``repeats`` and ``loss_weight`` of its own; hash and count are then of all,
    and ``own_hash`` and ``own_count`` of the first one alone.
    """

    path: str
    hash: str
    trigger: str
    class_description: str
    count: int
    repeats: int = 1
    loss_weight: float = 1.0
    more: tuple[DatasetHandle, ...] = ()
    own_hash: str = ""
    own_count: int = 0

    def parts(self) -> tuple[DatasetHandle, ...]:
        """Itself, alone, and those to train together with it."""
        if not self.more:
            return (self,)
        return (replace(self, hash=self.own_hash, count=self.own_count, more=(), own_hash="", own_count=0), *self.more)

    def trigger_words(self) -> tuple[str, ...]:
        """The trigger words of all of them, each once."""
        return tuple(dict.fromkeys(part.trigger for part in self.parts() if part.trigger))

    def section(self) -> dict[str, Any]:
        """The run configuration's section about it; the hash makes training refuse whatever lies at ``path`` by then."""
        first, *more = (
            {"path": part.path, "repeats": part.repeats, "loss_weight": part.loss_weight, "hash": part.hash} for part in self.parts()
        )
        return {**first, "more": more} if more else first


@dataclass(frozen=True)
class LoraHandle:
    """A LoRA file. ``sha256`` is the hash of its bytes; ``run_dir`` is empty for a file that was not trained on this machine."""

    path: str
    sha256: str
    trigger_words: tuple[str, ...]
    run_dir: str = ""


@dataclass(frozen=True)
class DatasetOptions:
    """Dataset settings as JSON text, and the menu entry of the regularisation folder (empty: none)."""

    settings: str
    regularisation: str


@dataclass(frozen=True)
class TrainOptions:
    """The settings of an options node for Train LoRA: sections of the run configuration as JSON text."""

    settings: str


LORA_INPUT = "(lora input)"  # the menu entry that stands for a connected LORA socket
DATASET = io.Custom("DATASET")
DATASET_OPTIONS = io.Custom("ANIMELORA_DATASET_OPTIONS")
TRAIN_OPTIONS = io.Custom("ANIMELORA_TRAIN_OPTIONS")
LORA = io.Custom("LORA")


def menu_or_socket(id: str, tooltip: str, names: Sequence[str]) -> io.Input:
    """A menu of ``names``, whose first entry stands for what is connected to the LORA socket."""
    tooltip = f"{tooltip} Ignored while the lora input is connected."
    return field(io.Combo, id, tooltip, options=[LORA_INPUT, *names], default=LORA_INPUT)


def dataset_from_socket(value: Any) -> DatasetHandle:
    """``value`` from a DATASET socket. Raises UserError for an object of another pack whose socket has the same name."""
    return _require(value, DatasetHandle, "dataset", "Connect the dataset output of Dataset Prep (AnimeLoRA).")


def lora_from_socket(value: Any) -> LoraHandle:
    """``value`` from a LORA socket. Raises UserError for an object of another pack whose socket has the same name."""
    return _require(value, LoraHandle, "LoRA", "Connect the lora output of Train LoRA (AnimeLoRA), or choose a file from the list.")


Options = TypeVar("Options", DatasetOptions, TrainOptions)


def options_from_socket(value: Any, kind: type[Options]) -> Options | None:
    """``value`` from an options socket, or None when nothing is connected. Raises UserError for any other object."""
    hint = "Connect Dataset Options to Dataset Prep, and Train Options to Train LoRA."
    return None if value is None else _require(value, kind, "options", hint)


Handle = TypeVar("Handle")


def _require(value: Any, kind: type[Handle], name: str, hint: str) -> Handle:
    if isinstance(value, kind):
        return value
    raise UserError(f"The {name} input got {type(value).__name__}, which AnimeLoRA did not make.", hint)
