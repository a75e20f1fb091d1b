"""Opens what a run works with, except for the models, and refuses what cannot be trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.frozen_lora import describe_frozen, frozen_modules
from ..adapters.start_from import lora_identity
from ..compute import accelerations
from ..compute.acceleration import Context
from ..compute.attention_choice import choose_attention
from ..compute.denoiser_setup import channels_last
from ..config.run_config import RunConfig
from ..core import devices
from ..core.errors import UserError
from ..core.library_imports import import_models, import_text_models
from ..core.messages import Message, Setting
from ..core.work.background import BackgroundTask
from ..core.work.processes import ProcessGroup, current_process_group
from ..dataset import Dataset
from ..families import BaseCheckpoint, Family, cautions
from ..objective.choose import choose_prediction
from ..plan.inputs import open_inputs
from ..plan.memory_check import TIGHT, require_memory
from ..plan.meta_models import MetaModels
from ..plan.planning import make_plan
from ..plan.settle import memory_with_changes
from ..plan.text_settings import prompt_settings
from ..runs import events, states
from ..runs.run_folder import RunFolder, cache_folder, run_identity
from ..runs.run_plan import RunPlan
from .caching.cache import Cache
from .caching.latent_cache import missing_latents
from .checkpoint_guard import CheckpointGuard
from .event_writer import EventLog
from .opened_run import BaseModel, Datasets, Hardware, OpenedRun, Start
from .saving.lora_exporter import tags_left_out

if TYPE_CHECKING:
    import torch

_PLENTY = 3  # times the size of the checkpoint


def open_run(run: RunFolder, config: RunConfig, emit: EventLog) -> OpenedRun:
    """Open everything a run needs except for the models. Raises UserError for what cannot be trained, or not with this memory."""

    def warn(message: str) -> None:
        if message:
            emit(events.Warning_(message))

    devices.use_own_gpu()
    inputs = open_inputs(config)
    config, checkpoint, family = inputs.config, inputs.checkpoint, inputs.family
    datasets = Datasets(inputs.dataset, inputs.held_out)
    guard = CheckpointGuard(checkpoint, cache_folder(config))
    device = devices.pick_device(config.training.device)
    prediction = choose_prediction(family, checkpoint, config.objective)
    frozen_lora = frozen_modules(config)
    lora = lora_identity(Path(config.base.lora), cache_folder(config)) if config.base.lora else ""
    changes_text = any(module.component != "unet" for module in frozen_lora)
    text = prompt_settings(config, family)
    cache = Cache(cache_folder(config), guard.identity, family.latents, text, lora if changes_text else "")
    _require_same_inputs(run, run_identity(config, datasets.training.hash, guard.identity, lora))

    precision = devices.pick_precision(config.training.precision, device)
    hardware = Hardware(device, precision, devices.torch_dtype(precision), current_process_group())
    uncached = any(missing_latents(cache, dataset) for dataset in (datasets.training, datasets.held_out))
    layout = channels_last(config.training.channels_last, device, hardware.dtype)
    denoiser_weights = _begin_to_read_denoiser(family, checkpoint, hardware.dtype, uncached, layout)
    attention, problem = choose_attention(config.training.attention, device, hardware.dtype)
    if problem:
        warn(f"xformers is installed but does not work here ({problem}); training uses torch's own attention.")
    import_models()
    if uncached or config.trains_text:
        import_text_models()

    models = MetaModels()
    plan = make_plan(config, datasets.training, family, checkpoint, device, precision, attention, models=models)
    memory_with = memory_with_changes(config, datasets.training, family, checkpoint, device, models)
    usable = devices.usable_memory_gb(device)
    require_memory(plan, usable, memory_with)
    if device.type == "cuda" and plan.memory_gb > usable:
        warn(Message(f"This run needs about {plan.memory_gb:.1f} GB, and {usable:.1f} GB of the GPU are usable. ", TIGHT))
    for message in accelerations.warnings(Context(config, device, hardware.dtype, len(plan.buckets))):
        warn(message)
    for message in [
        *cautions(checkpoint, family, config.objective.prediction),
        describe_frozen(config, frozen_lora),
        *_settings_warnings(config, datasets.training, plan),
    ]:
        warn(message)
    start = _find_start(run, plan.steps, warn)
    plan = replace(plan, start_step=start.step, held_out=len(datasets.held_out.items), regularisation=inputs.regularisation)
    _require_few_processes(hardware.processes, config)
    base = BaseModel(checkpoint, family, prediction, frozen_lora, guard, denoiser_weights)
    return OpenedRun(config, plan, datasets, base, cache, hardware, start, memory_with)


def _settings_warnings(config: RunConfig, dataset: Dataset, plan: RunPlan) -> list[str]:
    warnings = []
    if left_out := tags_left_out(dataset):
        warnings.append(f"The captions have so many tags that {left_out:,} of the rarest are left out of the LoRA's metadata.")
    if (warmup := config.optimizer.warmup_steps) >= plan.steps:
        warnings.append(
            f"The warm-up of {warmup} steps is as long as the run ({plan.steps} steps): the full learning rate is never reached."
        )
    return [*warnings, *dataset.notes]


def _begin_to_read_denoiser(
    family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, uncached: bool, layout: bool
) -> BackgroundTask[dict[str, torch.Tensor]] | None:
    """Read the denoiser's weights while diffusers is imported: one waits for the disk, the other runs Python.

    Not when images are ``uncached``, since another model is loaded first for these, nor when memory is short.
    """
    if uncached or checkpoint.kind != "file" or checkpoint.path.suffix.lower() != ".safetensors":
        return None
    import psutil

    numbers = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if psutil.virtual_memory().available < _PLENTY * numbers * dtype.itemsize:
        return None
    return BackgroundTask(partial(family.read_denoiser, checkpoint, dtype, channels_last=layout))


def _find_start(run: RunFolder, steps: int, warn: Callable[[str], None]) -> Start:
    """The newest undamaged state of a run of ``steps``, else the beginning. Warns of states that were skipped."""
    skipped: list[str] = []
    saved, values = states.newest(
        run.checkpoints, run=run.identity, last_step=steps, skipped=lambda path, why: skipped.append(f"{path.name} ({why})")
    )
    start = Start(saved.step, values) if saved is not None else Start()
    if skipped:
        where = f"resumes at step {start.step}" if start.step else "starts from the beginning"
        which = "this saved state is" if len(skipped) == 1 else "these saved states are"
        warn(f"The run {where}, because {which} not usable: {'; '.join(skipped)}.")
    return start


def _require_same_inputs(run: RunFolder, identity: str) -> None:
    """The parent named the folder after the inputs it saw: if they have changed since, this run must not be trained under that name."""
    if not run.path.name.endswith(f"-{identity}"):
        raise UserError(
            "The dataset or the checkpoint changed while the run was starting.", "Start again: it is then another run.", kind="dataset"
        )


def _require_few_processes(processes: ProcessGroup, config: RunConfig) -> None:
    images = config.training.batch_size * config.training.gradient_accumulation
    if processes.world_size > images:
        raise UserError(
            f"{processes.world_size} processes were started, but a step has only {images} image{'s' if images > 1 else ''}.",
            Message(
                "Raise ", Setting("training.batch_size"), " or ", Setting("training.gradient_accumulation"), f", or start {images} at most."
            ),
            kind="device",
        )
