"""What a run works with, in parts that belong together. ``open_run`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.run_config import RunConfig
from ..core.messages import Setting
from ..core.work.background import BackgroundTask
from ..core.work.processes import ProcessGroup
from ..dataset import Dataset
from ..families import BaseCheckpoint, Family, Prediction
from ..runs.run_plan import RunPlan
from .caching.cache import Cache
from .checkpoint_guard import CheckpointGuard

if TYPE_CHECKING:
    import torch

    from ..lorafile import LoraModule


@dataclass(frozen=True)
class Hardware:
    """Where the run computes and in which precision; ``processes`` train it together."""

    device: torch.device
    precision: str
    dtype: torch.dtype
    processes: ProcessGroup


@dataclass(frozen=True)
class Datasets:
    """The images to train on, and those held out for validation."""

    training: Dataset
    held_out: Dataset


@dataclass(frozen=True)
class BaseModel:
    """What is trained on. ``frozen_lora``: layers of ``base.lora`` that act but are not trained; ``denoiser_weights``: what
    ``Family.read_denoiser`` returns, where that has begun already."""

    checkpoint: BaseCheckpoint
    family: Family
    prediction: Prediction
    frozen_lora: Sequence[LoraModule]
    guard: CheckpointGuard
    denoiser_weights: BackgroundTask[dict[str, torch.Tensor]] | None

    @property
    def frozen_denoiser_lora(self) -> list[LoraModule]:
        """Those layers that belong to the denoiser."""
        return [module for module in self.frozen_lora if module.component == "unet"]

    @property
    def frozen_text_lora(self) -> list[LoraModule]:
        """Those layers that belong to a text encoder."""
        return [module for module in self.frozen_lora if module.component != "unet"]


@dataclass(frozen=True)
class Start:
    """Where a run starts: at ``step`` 0 without ``values``, or with the values of a saved state."""

    step: int = 0
    values: dict[str, Any] | None = None


@dataclass(frozen=True)
class OpenedRun:
    """All of it. Only the recipe takes everything; all others take the parts that they use."""

    config: RunConfig
    plan: RunPlan
    datasets: Datasets
    base: BaseModel
    cache: Cache
    hardware: Hardware
    start: Start
    memory_with: Callable[[Sequence[Setting]], float]  # the memory estimate in GB with some settings changed
