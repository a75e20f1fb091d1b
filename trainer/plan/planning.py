"""Making the plan of a run, before anything heavy is loaded: for the dry run and the ``plan`` event."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from ..adapters import adapter
from ..compute import accelerations
from ..compute.acceleration import Context
from ..compute.denoiser_setup import sequential_blocks
from ..config.memory_presets import SIZES
from ..config.run_config import RunConfig
from ..core import devices
from ..core.devices import torch_dtype, usable_memory_gb
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..dataset import Dataset
from ..dataset.loading.batch_order import steps_per_epoch
from ..families import FLOW, BaseCheckpoint, Family, Prediction, describe_latents
from ..objective.choose import choose_prediction, describe_prediction
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
    if precision == "fp16" and not family.trains_in_fp16:
        raise UserError(
            f"{family.title} cannot be trained in fp16: its values become too large.",
            Message("Set ", Setting("training.precision", "bf16"), ", or fp32. GPUs older than NVIDIA's Ampere only emulate bf16."),
            kind="config",
        )
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    per_epoch = dataset_steps(config, dataset)
    steps = total_steps(config, per_epoch)
    buckets: Counter[str] = Counter()
    for (width, height), times in zip(sizes, repeats, strict=True):
        buckets[f"{width}x{height}"] += times
    dtype = torch_dtype(precision)
    context = Context(config, device, dtype, len(buckets))
    fused = try_kernels and accelerations.is_available("fused_blocks", context)
    unet, text, modules, counted = (models or MetaModels()).build(config, family, checkpoint, dtype, fused)
    trainable: int = sum(parameter.numel() for model in models_of(unet, text) for parameter in adapter.parameters(model))
    largest = max(sizes, key=lambda size: size[0] * size[1])
    memory = memory_needed(unet, family, config, largest, dtype, text, counted)
    swappable = _swappable_blocks(unet, family, config, device)
    memory["base"] += accelerations.extra_bytes("swapped_blocks", unet, context) / 1e9
    packing = accelerations.extra_bytes("onednn", unet, context) / 1e9
    prepacked = _WORTH_GB <= packing <= _SPEED_SHARE * usable_memory_gb(device) - sum(memory.values())
    if prepacked:
        memory["base"] += packing
    gradients = accelerations.extra_bytes("cuda_graphs", unet, context) / 1e9
    # the first step of a new image size runs uncaptured, beside the graphs of other sizes
    uncaptured = memory["activations"] if len(buckets) > 1 else 0.0
    cuda_graphs = _uses_cuda_graphs(context, sum(memory.values()) + gradients + uncaptured)
    if cuda_graphs:
        memory["lora"] += gradients
    prediction = choose_prediction(family, checkpoint, config.objective)
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
        prediction=describe_prediction(prediction),
        memory_gb=round(sum(memory.values()), 2),
        memory={name: round(value, 3) for name, value in memory.items()},
        attention=attention,
        prepacked=prepacked,
        cuda_graphs=cuda_graphs,
        fused=fused,
        swappable_blocks=swappable,
        text_encoder=checkpoint.text_encoder.name if checkpoint.text_encoder else "",
        vae=checkpoint.vae.name if checkpoint.vae else "",
        latents=describe_latents(checkpoint, family.latents.scaling_factor) if _is_flow_by_choice(family, prediction) else "",
    )


def _is_flow_by_choice(family: Family, prediction: Prediction) -> bool:
    """Whether a model of a family of diffusions is trained as a flow: such models may have been trained with another VAE's scale."""
    return prediction.kind == FLOW and family.beta_schedule is not None


def _swappable_blocks(unet: nn.Module, family: Family, config: RunConfig, device: torch.device) -> int:
    """How many blocks ``training.swap_blocks`` could swap on ``device``. Raises UserError where it is set and the model has none."""
    count, wanted = len(sequential_blocks(unet)), config.training.swap_blocks
    if wanted and not count:
        raise UserError(
            Message(Setting("training.swap_blocks"), f" is {wanted}, but the blocks of {family.title} cannot be swapped."),
            Message("Set ", Setting("training.swap_blocks", 0), "."),
            kind="config",
        )
    is_possible = devices.has_own_memory(device) and config.can_swap_blocks and accelerations.find("swapped_blocks") is not None
    return count if is_possible else 0


def _uses_cuda_graphs(context: Context, needed_gb: float) -> bool:
    """Whether steps are captured as CUDA graphs. Graphs keep their memory while validation images are made, so ``auto`` wants a margin."""
    if not accelerations.is_available("cuda_graphs", context):
        return False
    training = context.config.training
    usable_gb = min(usable_memory_gb(context.device), SIZES.get(training.memory, math.inf))
    return training.cuda_graphs == "on" or needed_gb <= _SPEED_SHARE * usable_gb


def dataset_steps(config: RunConfig, dataset: Dataset) -> int:
    """Optimiser steps of one epoch."""
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    return steps_per_epoch(sizes, repeats, config.training.batch_size, config.training.gradient_accumulation)


def total_steps(config: RunConfig, per_epoch: int) -> int:
    """Optimiser steps of the whole run: epochs times steps per epoch, or ``max_steps`` if that is set and smaller."""
    steps = config.training.epochs * per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps
