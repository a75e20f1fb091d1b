"""Filling in a configuration's memory preset, so that the configuration alone determines the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..config import run_config
from ..config.memory_presets import is_settled, settled
from ..config.overrides import apply_override
from ..core import devices
from ..core.messages import Setting
from ..dataset import Dataset
from ..families import BaseCheckpoint, Family
from .meta_models import MetaModels
from .planning import make_plan

if TYPE_CHECKING:
    import torch


def settle_memory(
    config: run_config.RunConfig, dataset: Dataset, family: Family, checkpoint: BaseCheckpoint, models: MetaModels | None = None
) -> run_config.RunConfig:
    """``config`` with its memory preset filled in for this machine; unchanged if nothing is left to fill in."""
    if is_settled(config):
        return config
    import torch

    device = devices.pick_device(config.training.device)
    models = models or MetaModels()

    def estimate(candidate: run_config.RunConfig) -> float:
        precision = devices.pick_precision(candidate.training.precision, device)
        with torch.inference_mode(False), torch.enable_grad():  # ComfyUI runs nodes without gradients; the estimate counts them
            # no kernel is tried on the GPU: this process is the parent, which must hold no GPU memory while the child trains
            return make_plan(candidate, dataset, family, checkpoint, device, precision, try_kernels=False, models=models).memory_gb

    return settled(config, family.preset_group, devices.usable_memory_gb(device), estimate)


def memory_with_changes(
    config: run_config.RunConfig,
    dataset: Dataset,
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    models: MetaModels,
    *,
    try_kernels: bool = True,
) -> Callable[[Sequence[Setting]], float]:
    """A function that estimates the memory in GB with some settings changed. ``try_kernels``: see ``make_plan``."""

    def memory_with(changes: Sequence[Setting]) -> float:
        data = config.model_dump(mode="json")
        for change in changes:
            apply_override(data, str(change), example="training.batch_size=1")
        changed = run_config.parse(data)
        precision = devices.pick_precision(changed.training.precision, device)
        return make_plan(changed, dataset, family, checkpoint, device, precision, try_kernels=try_kernels, models=models).memory_gb

    return memory_with
