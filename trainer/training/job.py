"""What one run works with and never changes: configuration, device, dataset, checkpoint, caches and plan."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.frozen_lora import describe_frozen, frozen_modules
from ..adapters.start_from import lora_identity
from ..compute.attention import choose_attention
from ..compute.denoiser_setup import channels_last
from ..config import run_config as config
from ..core import devices
from ..core.diagnosis import diagnose, memory_hint
from ..core.errors import UserError
from ..core.library_imports import import_models, import_text_models
from ..core.messages import Message, Setting
from ..core.work.background import BackgroundTask
from ..core.work.processes import ProcessGroup, current_process_group
from ..dataset import Dataset
from ..families import BaseCheckpoint, Family, Prediction, cautions
from ..objective import objective
from ..plan.inputs import open_inputs
from ..plan.memory_check import TIGHT, require_memory, savings
from ..plan.meta_models import MetaModels
from ..plan.planning import make_plan
from ..plan.settle import memory_with_changes
from ..runs import events, states
from ..runs.run_folder import RunFolder, cache_folder, run_identity
from ..runs.run_plan import RunPlan
from .cache import Cache, missing_latents
from .export import tags_left_out
from .parent_channel import Emitter

if TYPE_CHECKING:
    import torch

    from ..lorafile import LoraModule

_PLENTY = 3  # times what the checkpoint takes in memory


@dataclass(frozen=True)
class Job:
    """One run. ``between_steps`` is held while weights and optimiser change, and while a state or a LoRA is written."""

    run: RunFolder
    config: config.RunConfig
    emit: Emitter
    stop: threading.Event
    device: torch.device
    precision: str
    dtype: torch.dtype
    dataset: Dataset  # what is trained on
    held_out: Dataset  # what is not: pictures for validation
    checkpoint: BaseCheckpoint
    family: Family
    prediction: Prediction
    cache: Cache
    plan: RunPlan
    between_steps: threading.Lock
    processes: ProcessGroup
    frozen: Sequence[LoraModule]  # layers of ``base.lora`` that act but are not trained
    checkpoint_mark: list[tuple[int, int]]  # of its files when the run began
    unet: BackgroundTask[dict[str, torch.Tensor]] | None  # what ``Family.read_denoiser`` gives, where it is being read already

    def explained(self, error: Exception) -> UserError:
        """``error`` for the user; when memory ran out, with the setting that would help this run most."""
        failure = diagnose(error, self.run.path)
        if failure.kind == "internal" and not all(file.exists() for file in _files(self.checkpoint).values()):
            try:
                self.require_checkpoint()
            except UserError as gone:
                return gone
        if failure.kind != "memory" or isinstance(error, UserError):
            return failure
        memory_with = memory_with_changes(self.config, self.dataset, self.family, self.checkpoint, self.device, MetaModels())
        with suppress(Exception):  # the general hint is better than none
            failure.hint = memory_hint(self.plan.memory_gb, savings(self.plan, memory_with))
        return failure

    def require_checkpoint(self) -> None:
        """Refuse to read from a checkpoint, or its VAE, that was deleted, moved or replaced since the run began. Raises UserError."""
        files = _files(self.checkpoint)
        gone = next((what for what, file in files.items() if not file.exists()), "")
        if gone:
            raise UserError(f"{gone} was deleted or moved while the run needed it.", "Put it back, and start again.", kind="checkpoint")
        if _mark(self.checkpoint) != self.checkpoint_mark and self.checkpoint.identity(self.cache.folder) != self.cache.identity:
            raise UserError(
                f"{' or '.join(files)} was replaced by another while the run needed it.",
                "Put the first one back, and start again.",
                kind="checkpoint",
            )

    @property
    def writes(self) -> bool:
        """Whether this process writes files: the first one does."""
        return self.processes.is_main


@dataclass(frozen=True)
class Start:
    """Where a run starts: at ``step`` 0 without ``values``, or with those of a saved state."""

    step: int = 0
    values: dict[str, Any] | None = None


def open_job(run: RunFolder, settings: config.RunConfig, emit: Emitter, stop: threading.Event) -> tuple[Job, Start]:
    """Open everything a run needs but the models. Raises UserError for what cannot be trained, or not with the memory there is."""
    devices.use_own_gpu()
    inputs = open_inputs(settings)
    settings, dataset, checkpoint, family = inputs.config, inputs.dataset, inputs.checkpoint, inputs.family
    mark = _mark(checkpoint)
    device = devices.pick_device(settings.training.device)
    prediction = objective.chosen_prediction(family.prediction(checkpoint), settings.objective, checkpoint.name)
    folder = cache_folder(settings)
    text = family.text_settings(settings.training.max_tokens, settings.training.clip_skip)
    lora = lora_identity(Path(settings.base.lora), folder) if settings.base.lora else ""
    frozen = frozen_modules(settings)
    changes_text = any(module.component != "unet" for module in frozen)
    cache = Cache(folder, checkpoint.identity(folder), text, lora if changes_text else "")
    _require_same_inputs(run, settings, dataset, cache, lora)
    precision = devices.pick_precision(settings.training.precision, device)
    dtype = devices.torch_dtype(precision)
    uncached = any(missing_latents(cache, each) for each in (dataset, inputs.held_out))
    unet = _read_unet(family, checkpoint, dtype, uncached, channels_last(settings.training.channels_last, device, dtype))
    attention, problem = choose_attention(settings.training.attention, device, dtype)
    if problem:
        emit(events.Warning_(f"xformers is installed but does not work here ({problem}); attention is torch's own."))
    import_models()
    if uncached or settings.network.text_encoder:
        import_text_models()
    models = MetaModels()
    plan = make_plan(settings, dataset, family, checkpoint, device, precision, attention, models=models)
    memory_with = memory_with_changes(settings, dataset, family, checkpoint, device, models)
    usable = devices.usable_memory_gb(device)
    require_memory(plan, usable, memory_with)
    if device.type == "cuda" and plan.memory_gb > usable:
        emit(events.Warning_(Message(f"This run needs about {plan.memory_gb:.1f} GB, and {usable:.1f} GB of the GPU are usable. ", TIGHT)))
    for caution in [*cautions(checkpoint), describe_frozen(settings, frozen)]:
        if caution:
            emit(events.Warning_(caution))
    if left_out := tags_left_out(dataset):
        emit(events.Warning_(f"The captions have so many tags that {left_out:,} of the rarest are left out of the LoRA's metadata."))
    warmup = settings.optimizer.warmup_steps
    if warmup >= plan.steps:
        emit(events.Warning_(f"The warm-up of {warmup} steps is as long as the run ({plan.steps} steps): the full rate is never reached."))
    for note in dataset.notes:
        emit(events.Warning_(note))
    start = _start(run, plan.steps, emit)
    plan = replace(plan, start_step=start.step, held_out=len(inputs.held_out.items), regularisation=inputs.regularisation)
    processes = current_process_group()
    images = settings.training.batch_size * settings.training.gradient_accumulation
    if processes.world_size > images:
        raise UserError(
            f"{processes.world_size} processes were started, but a step has only {images} image{'s' if images > 1 else ''}.",
            Message(
                "Raise ", Setting("training.batch_size"), " or ", Setting("training.gradient_accumulation"), f", or start {images} at most."
            ),
            kind="device",
        )
    job = Job(
        run=run,
        config=settings,
        emit=emit,
        stop=stop,
        device=device,
        precision=precision,
        dtype=dtype,
        dataset=dataset,
        held_out=inputs.held_out,
        checkpoint=checkpoint,
        family=family,
        prediction=prediction,
        cache=cache,
        plan=plan,
        between_steps=threading.Lock(),
        processes=processes,
        frozen=frozen,
        checkpoint_mark=mark,
        unet=unet,
    )
    return job, start


def _read_unet(
    family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, uncached: bool, channels_last: bool
) -> BackgroundTask[dict[str, torch.Tensor]] | None:
    """Begin to read the UNet, which goes on while diffusers is imported: one waits for the disk or copies, the other is Python.

    Not where pictures are ``uncached``, for which another model is loaded first, nor where memory is short.
    """
    if uncached or checkpoint.kind != "file" or checkpoint.path.suffix.lower() != ".safetensors":
        return None
    import psutil

    numbers = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if psutil.virtual_memory().available < _PLENTY * numbers * dtype.itemsize:
        return None
    return BackgroundTask(partial(family.read_denoiser, checkpoint, dtype, channels_last=channels_last))


def _start(run: RunFolder, steps: int, emit: Emitter) -> Start:
    """From the newest undamaged state of a run of ``steps``, else from the beginning; what was passed over is said."""
    skipped: list[str] = []
    saved, values = states.newest(
        run.checkpoints, run=run.identity, last_step=steps, skipped=lambda path, why: skipped.append(f"{path.name} ({why})")
    )
    start = Start(saved.step, values) if saved is not None else Start()
    if skipped:
        where = f"resumes at step {start.step}" if start.step else "starts from the beginning"
        which = "this saved state is" if len(skipped) == 1 else "these saved states are"
        emit(events.Warning_(f"The run {where}, because {which} not usable: {'; '.join(skipped)}."))
    return start


def _files(checkpoint: BaseCheckpoint) -> dict[str, Path]:
    """The files that stand for a checkpoint and its VAE, by what they are called in messages."""
    files = {f"The checkpoint {checkpoint.path}": checkpoint.path if checkpoint.kind == "file" else checkpoint.path / "model_index.json"}
    if (vae := checkpoint.vae) is not None:
        files[f"The VAE {vae.path}"] = vae.path / "config.json" if vae.is_folder else vae.path
    return files


def _mark(checkpoint: BaseCheckpoint) -> list[tuple[int, int]]:
    """Sizes and times of the files of a checkpoint; fewer where one is not there."""
    marks = []
    for file in _files(checkpoint).values():
        with suppress(OSError):
            status = file.stat()
            marks.append((status.st_size, status.st_mtime_ns))
    return marks


def _require_same_inputs(run: RunFolder, settings: config.RunConfig, dataset: Dataset, cache: Cache, start: str) -> None:
    """The parent named the folder after what it saw: a dataset or checkpoint that changed since must not be trained under that name."""
    if not run.path.name.endswith(f"-{run_identity(settings, dataset.hash, cache.identity, start)}"):
        raise UserError(
            "The dataset or the checkpoint changed while the run was starting.", "Start again: it is then another run.", kind="dataset"
        )
