"""Filling in a configuration's memory preset, so that it says all that determines the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..config import run_config
from ..config.memory_presets import is_settled, settled
from ..config.overrides import apply_override
from ..core import devices
from ..dataset import Dataset
from ..dataset.open import open_datasets
from ..families import BaseCheckpoint, Family, family_of, open_checkpoint
from .run_plan import Models, make_plan

if TYPE_CHECKING:
    import torch


def settle(settings: run_config.RunConfig) -> run_config.RunConfig:
    """``settings`` with its memory preset filled in, so that they say all that determines the run. Raises UserError for bad input."""
    if is_settled(settings):
        return settings
    dataset, checkpoint = open_datasets(settings.dataset), open_checkpoint(settings.base.checkpoint, settings.base.vae)
    return _settled(settings, dataset, family_of(checkpoint), checkpoint, devices.pick_device(settings.training.device))


def _settled(
    settings: run_config.RunConfig, dataset: Dataset, family: Family, checkpoint: BaseCheckpoint, device: torch.device
) -> run_config.RunConfig:
    import torch

    models = Models()

    def estimate(candidate: run_config.RunConfig) -> float:
        precision = devices.pick_precision(candidate.training.precision, device)
        with torch.inference_mode(False), torch.enable_grad():  # ComfyUI's nodes run without gradients, which are what is estimated
            # without a trial: the parent's process, which this runs in, shall hold no memory of the GPU while the child trains
            return make_plan(candidate, dataset, family, checkpoint, device, precision, trial=False, models=models).memory_gb

    return settled(settings, family.preset_group, devices.usable_memory_gb(device), estimate)


def _memory_with(
    settings: run_config.RunConfig, dataset: Dataset, family: Family, checkpoint: BaseCheckpoint, device: torch.device, models: Models
) -> Callable[[Sequence[str]], float]:
    """Gives the estimate in GB with some keys of the configuration changed."""

    def memory_with(changes: Sequence[str]) -> float:
        data = settings.model_dump(mode="json")
        for change in changes:
            apply_override(data, change, example="training.batch_size=1")
        changed = run_config.parse(data)
        precision = devices.pick_precision(changed.training.precision, device)
        return make_plan(changed, dataset, family, checkpoint, device, precision, models=models).memory_gb

    return memory_with
