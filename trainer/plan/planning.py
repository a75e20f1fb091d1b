"""Making the plan of a run, before anything heavy is loaded: for the dry run and the ``plan`` event."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from ..adapters import adapter
from ..compute.denoiser_setup import kernels_problem, may_fuse
from ..config.memory_presets import SIZES
from ..config.run_config import RunConfig
from ..core.devices import torch_dtype, usable_memory_gb
from ..core.errors import UserError
from ..dataset import Dataset
from ..dataset.loading.batch_order import steps_per_epoch
from ..families import BaseCheckpoint, Family
from ..objective.objective import chosen_prediction, describe
from ..runs.run_plan import RunPlan
from .memory_estimate import memory_needed, models_of
from .meta_models import MetaModels

if TYPE_CHECKING:
    import torch
    from torch import nn

_SPEED_SHARE = 0.6  # of the memory: a run that needs more does without what only makes it faster
_WORTH_GB = 0.1  # smaller weights fit into the processor's cache, so that packing them gains nothing


def make_plan(
    config: RunConfig,
    dataset: Dataset,
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    precision: str,
    attention: str = "sdpa",
    *,
    try_kernels: bool = True,
    models: MetaModels | None = None,
) -> RunPlan:
    """The plan of a run that uses the attention kernel ``attention``. ``models``: those of earlier plans of the run.

    Without ``try_kernels`` our own kernels are not tried on the GPU, and the plan does without them. Raises UserError for a configuration
    that cannot train (no image, no module).
    """
    if not dataset.items:
        raise UserError(f"The dataset {dataset.name} holds no images.", "Run Dataset Prep on a folder with images.", kind="dataset")
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    training = config.training
    per_epoch = steps_per_epoch(sizes, repeats, training.batch_size, training.gradient_accumulation)
    steps = total_steps(config, per_epoch)
    buckets: Counter[str] = Counter()
    for (width, height), times in zip(sizes, repeats, strict=True):
        buckets[f"{width}x{height}"] += times
    dtype = torch_dtype(precision)
    fused = try_kernels and may_fuse(config.training, device, dtype) and not kernels_problem(device, dtype)
    unet, text, modules, counted = (models or MetaModels()).build(config, family, checkpoint, dtype, fused)
    trainable: int = sum(parameter.numel() for model in models_of(unet, text) for parameter in adapter.parameters(model))
    largest = max(sizes, key=lambda size: size[0] * size[1])
    memory = memory_needed(unet, family, config, largest, dtype, text, counted)
    packing = _prepacked_gb(config, unet, len(buckets), device, dtype)
    prepacked = _WORTH_GB <= packing <= _SPEED_SHARE * usable_memory_gb(device) - sum(memory.values())
    if prepacked:
        memory["base"] += packing
    gradients = _captured_gradients_gb(config, trainable, dtype)
    # the first step of a new image size runs uncaptured, beside the graphs of other sizes
    uncaptured = memory["activations"] if len(buckets) > 1 else 0.0
    cuda_graphs = _uses_cuda_graphs(config, device, sum(memory.values()) + gradients + uncaptured)
    if cuda_graphs:
        memory["lora"] += gradients
    return RunPlan(
        images=len(dataset.items),
        buckets=dict(sorted(buckets.items())),
        epochs=-(-steps // per_epoch),
        steps=steps,
        steps_per_epoch=per_epoch,
        trainable_parameters=trainable,
        modules=len(modules),
        family=family.name,
        device=device.type,
        precision=precision,
        prediction=describe(chosen_prediction(family.prediction(checkpoint), config.objective, checkpoint.name)),
        memory_gb=round(sum(memory.values()), 2),
        memory={name: round(value, 3) for name, value in memory.items()},
        attention=attention,
        prepacked=prepacked,
        cuda_graphs=cuda_graphs,
        fused=fused,
    )


def _uses_cuda_graphs(config: RunConfig, device: torch.device, needed_gb: float) -> bool:
    """Whether steps are captured as CUDA graphs. Graphs keep their memory while preview images are made, so ``auto`` wants a margin.

    Not with a trained text encoder, whose prompts vary in length, nor with dropout, which draws a new mask for each step.
    """
    setting = config.training.cuda_graphs
    if device.type != "cuda" or setting == "off" or config.network.text_encoder or config.network.dropout:
        return False
    usable_gb = min(usable_memory_gb(device), SIZES.get(config.training.memory, math.inf))
    return setting == "on" or needed_gb <= _SPEED_SHARE * usable_gb


def _captured_gradients_gb(config: RunConfig, trainable: int, dtype: torch.dtype) -> float:
    """The memory that CUDA graphs add: the gradients that all graphs write to, and those that a new graph is compared with.

    Both have the dtype of the computation, DoRA's fp32.
    """
    return 2 * trainable * (4 if config.network.dora else dtype.itemsize) / 1e9


def _prepacked_gb(config: RunConfig, unet: nn.Module, buckets: int, device: torch.device, dtype: torch.dtype) -> float:
    """The memory for packing the base's layers for the CPU; 0 if that is impossible or would not be faster.

    Images of several sizes need another packing from step to step, and DoRA reads the plain weights at every step; compiled blocks and a
    quantised base have layouts of their own.
    """
    training, network = config.training, config.network
    if device.type != "cpu" or buckets > 1 or network.dora or training.compile or training.base_precision != "same":
        return 0.0
    from ..compute import onednn_layers as prepacked

    return prepacked.extra_bytes(unet, dtype) / 1e9 if prepacked.works(dtype) else 0.0


def total_steps(config: RunConfig, per_epoch: int) -> int:
    """Optimiser steps of the whole run: epochs times steps per epoch, or ``max_steps`` if that is set and smaller."""
    steps = config.training.epochs * per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps
