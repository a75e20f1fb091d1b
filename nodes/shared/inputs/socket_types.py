"""What travels through our own four sockets: paths and hashes, and settings as text; never tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from comfy_api.latest import io

from ....trainer.core.errors import UserError


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
class Lora:
    """A LoRA file. ``sha256`` is of the file's bytes; ``run_dir`` is empty for a file that was not trained here."""

    path: str
    sha256: str
    trigger_words: tuple[str, ...]
    run_dir: str = ""


@dataclass(frozen=True)
class DatasetOptions:
    """Further dataset settings as JSON text, and the menu entry of the regularisation folder (empty: none)."""

    settings: str
    regularisation: str


@dataclass(frozen=True)
class TrainOptions:
    """What Train Options adds to Train LoRA: ``settings`` are sections of the run configuration as JSON."""

    settings: str


DATASET = io.Custom("DATASET")
DATASET_OPTIONS = io.Custom("ANIMELORA_DATASET_OPTIONS")
TRAIN_OPTIONS = io.Custom("ANIMELORA_TRAIN_OPTIONS")
LORA = io.Custom("LORA")


def as_dataset(value: Any) -> DatasetHandle:
    """``value`` from a DATASET socket; UserError when another pack's object of the same socket name came in."""
    if isinstance(value, DatasetHandle):
        return value
    raise UserError(
        f"The dataset input got {type(value).__name__}, which AnimeLoRA did not make.",
        "Connect the dataset output of Dataset Prep (AnimeLoRA).",
    )


def as_lora(value: Any) -> Lora:
    """``value`` from a LORA socket; UserError when another pack's object of the same socket name came in."""
    if isinstance(value, Lora):
        return value
    raise UserError(
        f"The LoRA input got {type(value).__name__}, which AnimeLoRA did not make.",
        "Connect the lora output of Train LoRA (AnimeLoRA), or choose a file from the list.",
    )


Options = TypeVar("Options", DatasetOptions, TrainOptions)


def as_options(value: Any, kind: type[Options]) -> Options | None:
    """``value`` from an options socket, None when nothing is connected; UserError when it is something else."""
    if value is None or isinstance(value, kind):
        return value
    raise UserError(
        f"The options input got {type(value).__name__}, which AnimeLoRA did not make.",
        "Connect Dataset Options to Dataset Prep, and Train Options to Train LoRA.",
    )
