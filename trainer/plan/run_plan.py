"""What a run will do and need, worked out before anything heavy is loaded: the dry run and the ``plan`` event."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..adapters.text_encoders import adapt_text
from ..compute.denoiser_setup import kernels_problem, may_fuse
from ..compute.quantise import quantise
from ..config.memory_presets import SIZES
from ..config.run_config import RunConfig
from ..core.devices import torch_dtype, usable_memory_gb
from ..core.errors import UserError
from ..core.messages import Message, Setting, joined
from ..dataset import Dataset
from ..dataset.loading.batch_order import steps_per_epoch
from ..families import BaseCheckpoint, Family, TextEncoder
from ..objective.objective import chosen_prediction, describe
from ..runs import events
from .memory_estimate import memory_needed, models_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_ROOM = 0.6  # share of the memory that a run may take for what is only faster
_WORTH_GB = 0.1  # weights that fit into a processor's cache are put into blocks in no time
_TOLERANCE = 1.1  # how far the estimate may be off
_AUTO = Setting("training.memory", "auto")
TIGHT = Message(
    "It may run out of memory, and on Windows it becomes many times slower, because the driver moves what does not fit into main memory. ",
    _AUTO,
    " chooses settings that fit.",
)
# What saves memory, in the order of how little it costs.
_THRIFT = (
    Setting("training.precision", "bf16"),
    Setting("training.gradient_checkpointing", True),
    Setting("training.micro_batch_size", 1),
    Setting("training.base_precision", "int8"),
    Setting("network.targets", "attention"),
)


class Models:
    """Models on the meta device, and what was counted on them: plans of one run with other settings share what these leave as it is."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[nn.Module, TextEncoder | None, list[str]]] = {}
        self._counted: dict[Any, dict[Any, tuple[int, int]]] = {}

    def planned(
        self, config: RunConfig, family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, fused: bool
    ) -> tuple[nn.Module, TextEncoder | None, list[str], dict[Any, tuple[int, int]]]:
        """The run's UNet, and the text encoders where they are trained, with LoRA; the names of what is trained; for ``memory_needed``."""
        training = config.training
        limits = (training.base_precision, training.max_tokens, training.clip_skip)
        key = (checkpoint.path, config.network.model_dump_json(), limits, dtype, fused)
        if key not in self._made:
            self._made[key] = _planned_models(config, family, checkpoint, dtype, fused)
        return *self._made[key], self._counted.setdefault(key, {})


def make_plan(
    config: RunConfig,
    dataset: Dataset,
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    precision: str,
    attention: str = "sdpa",
    *,
    trial: bool = True,
    models: Models | None = None,
) -> events.Plan:
    """The plan of a run with the kernel ``attention``; without ``trial`` no kernel is tried on the GPU, and none counted on. ``models``:
    those of earlier plans of the run.

    Raises UserError for a configuration that cannot train (no image, no module).
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
    fused = trial and may_fuse(config.training, device, dtype) and not kernels_problem(device, dtype)
    unet, text, modules, counted = (models or Models()).planned(config, family, checkpoint, dtype, fused)
    trainable: int = sum(parameter.numel() for model in models_of(unet, text) for parameter in adapter.parameters(model))
    largest = max(sizes, key=lambda size: size[0] * size[1])
    memory = memory_needed(unet, family, config, largest, dtype, text, counted)
    more = _prepacked_gb(config, unet, len(buckets), device, dtype)
    prepacked = _WORTH_GB <= more <= _ROOM * usable_memory_gb(device) - sum(memory.values())
    if prepacked:
        memory["base"] += more
    second = _recorded_gradients_gb(config, trainable, dtype)
    # beside a recording of one size, the first pass of another is computed as it is written
    beside = memory["activations"] if len(buckets) > 1 else 0.0
    cuda_graphs = _captures(config, device, sum(memory.values()) + second + beside)
    if cuda_graphs:
        memory["lora"] += second
    return events.Plan(
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


def _captures(config: RunConfig, device: torch.device, needed_gb: float) -> bool:
    """Whether passes are recorded as CUDA graphs. They keep their memory while validation images are made, so ``auto`` wants room.

    A text encoder that is trained works on prompts of changing lengths, and what dropout drops is drawn anew for each pass.
    """
    setting = config.training.cuda_graphs
    if device.type != "cuda" or setting == "off" or config.network.text_encoder or config.network.dropout:
        return False
    room = min(usable_memory_gb(device), SIZES.get(config.training.memory, math.inf))
    return setting == "on" or needed_gb <= _ROOM * room


def _recorded_gradients_gb(config: RunConfig, trainable: int, dtype: torch.dtype) -> float:
    """What CUDA graphs take beside a pass as written: the gradients that all recordings give, and those that a new one is compared with.

    Both in the dtype that the passes compute with; DoRA's are fp32.
    """
    return 2 * trainable * (4 if config.network.dora else dtype.itemsize) / 1e9


def _prepacked_gb(config: RunConfig, unet: nn.Module, buckets: int, device: torch.device, dtype: torch.dtype) -> float:
    """What packing the base's layers for the CPU takes; 0 where it cannot be done or would not be faster.

    Pictures of several sizes want other blocks from step to step; DoRA asks for the weights in rows at every step; compiled blocks and a
    base in fewer bits have ways of their own.
    """
    training, network = config.training, config.network
    if device.type != "cpu" or buckets > 1 or network.dora or training.compile or training.base_precision != "same":
        return 0.0
    from ..compute import onednn_layers as prepacked

    return prepacked.extra_bytes(unet, dtype) / 1e9 if prepacked.works(dtype) else 0.0


def memory_of(
    config: RunConfig, family: Family, checkpoint: BaseCheckpoint, size: tuple[int, int], dtype: torch.dtype, *, fused: bool = False
) -> dict[str, float]:
    """``memory_needed`` for pictures of ``size`` (width, height) without a dataset; ``fused``: with fused blocks, which need Triton."""
    unet, text, _ = _planned_models(config, family, checkpoint, dtype, fused)
    return memory_needed(unet, family, config, size, dtype, text)


def _planned_models(
    config: RunConfig, family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, fused: bool
) -> tuple[nn.Module, TextEncoder | None, list[str]]:
    """The run's UNet, and the text encoders where they are trained, with LoRA on the meta device; the names of what is trained."""
    unet = family.empty_denoiser(checkpoint)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    meta = _meta()
    if config.training.base_precision != "same":
        quantise(unet, config.training.base_precision, meta)
    if fused:
        from ..compute.fused_blocks import fuse

        fuse(unet)
    settings = family.text_settings(config.training.max_tokens, config.training.clip_skip)
    text = family.empty_text_encoder(checkpoint, settings) if config.network.text_encoder else None
    modules: list[str] = []
    with meta:
        if config.network.unet:
            modules += adapter.adapt(unet, family.denoiser_targets(unet, config.network.targets), config.network, 0)
        if text is not None:
            modules += adapt_text(text, family, config.network, 0)
    return unet, text, modules


def require_memory(plan: events.Plan, usable_gb: float, again: Callable[[Sequence[Setting]], float]) -> None:
    """Refuse a run that cannot fit into ``usable_gb``, naming the first change that would make it fit.

    ``again`` gives the estimate in GB with some settings changed. The estimate may be a tenth too high,
    so that much above the memory is still let through. Raises UserError of the kind ``memory``.
    """
    if plan.memory_gb <= usable_gb * _TOLERANCE:
        return
    for count in range(1, len(_THRIFT) + 1):
        needed = again(_THRIFT[:count])
        if needed <= usable_gb * _TOLERANCE:
            changes = joined(", ", _THRIFT[:count])
            hint = Message(f"It would fit ({needed:.1f} GB) with ", changes, "; ", _AUTO, " chooses such settings.")
            break
    else:
        hint = Message("No setting makes it fit: prepare the dataset at a smaller resolution, or train on a smaller model or a larger GPU.")
    where = "this machine" if plan.device == "cpu" else "the GPU"
    message = f"This run needs about {plan.memory_gb:.1f} GB of memory, and {where} has {usable_gb:.1f} GB for it."
    raise UserError(message, hint, kind="memory")


def savings(plan: events.Plan, again: Callable[[Sequence[Setting]], float]) -> list[tuple[Setting, float]]:
    """The changes that would save memory, each alone, with the estimate in GB that is left, the most helpful first. ``again`` as above."""
    left = [(change, again([change])) for change in _THRIFT]
    return sorted(((change, needed) for change, needed in left if needed < plan.memory_gb - 0.01), key=lambda pair: pair[1])


def total_steps(config: RunConfig, per_epoch: int) -> int:
    """Optimiser steps of the whole run: epochs times steps per epoch, or ``max_steps`` if that is set and smaller."""
    steps = config.training.epochs * per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps


def _meta() -> Any:
    import torch

    return torch.device("meta")
