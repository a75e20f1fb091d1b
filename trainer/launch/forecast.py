"""What a run will do and need, before it starts: for the panel on the canvas. Nothing here reads weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.start_from import require_lora
from ..config.run_config import RunConfig, absolute
from ..core import devices
from ..core.errors import UserError
from ..dataset.loading.open import trigger_words
from ..families import Family, cautions, family_of, open_checkpoint
from ..objective.choose import choose_prediction
from ..plan.inputs import RunInputs, open_inputs
from ..plan.memory_check import require_memory
from ..plan.meta_models import MetaModels
from ..plan.planning import dataset_steps, make_plan, total_steps
from ..plan.settings_cautions import alpha_cautions, settings_cautions
from ..plan.settle import memory_with_changes
from ..plan.time_estimate import TimeEstimate, estimate_time
from ..runs.run_folder import cache_folder
from ..runs.run_plan import RunPlan
from .outlook import Outlook, outlook, starts_new
from .prepared_run import prepare_opened

Check = Callable[[Family], None]


@dataclass(frozen=True)
class Forecast:
    """``time`` is None where no earlier run allows an estimate. ``refusal``: why the run will fail for lack of memory."""

    plan: RunPlan
    outlook: Outlook
    time: TimeEstimate | None
    usable_gb: float
    cautions: tuple[str, ...]
    refusal: UserError | None


def forecast(config: RunConfig, models: MetaModels, check: Check = lambda family: None) -> Forecast:
    """The forecast of a run with ``config``. ``models`` are kept between calls. ``check`` may refuse the family of the checkpoint.

    Raises UserError for what the run would be refused for.
    """
    import torch

    inputs = open_inputs(absolute(config), models)
    config, checkpoint = inputs.config, inputs.checkpoint
    choose_prediction(inputs.family, checkpoint, config.objective)
    check(inputs.family)
    if config.base.lora:
        require_lora(Path(config.base.lora))
    device = devices.pick_device(config.training.device)
    precision = devices.pick_precision(config.training.precision, device)
    given = (inputs.dataset, inputs.family, checkpoint, device)
    usable = devices.usable_memory_gb(device)
    refusal = None
    with torch.inference_mode(False), torch.enable_grad():
        # no kernel is tried on the GPU: ComfyUI may be using it
        plan = make_plan(config, *given, precision, try_kernels=False, models=models)
        try:
            require_memory(plan, usable, memory_with_changes(config, *given, models, try_kernels=False))
        except UserError as error:
            refusal = error
    plan = replace(plan, held_out=len(inputs.held_out.items), regularisation=inputs.regularisation)
    coming = outlook_of(inputs)
    return Forecast(plan, coming, estimate_time(config, plan, coming.step), usable, all_cautions(inputs), refusal)


def checkpoint_cautions(config: RunConfig, check: Check) -> tuple[str, ...]:
    """The warnings that need no dataset. Raises UserError for a checkpoint that cannot be trained with these settings."""
    checkpoint = open_checkpoint(config.base.checkpoint, config.base.vae, config.base.text_encoder)
    family = family_of(checkpoint)
    choose_prediction(family, checkpoint, config.objective)
    check(family)
    return (*cautions(checkpoint, family, config.objective.prediction), *alpha_cautions(config))


def outlook_of(inputs: RunInputs) -> Outlook:
    """The outlook of a run. A checkpoint that was never hashed is not hashed here: no run on it can have been started."""
    if not inputs.checkpoint.is_hashed(cache_folder(inputs.config)):
        return starts_new(total_steps(inputs.config, dataset_steps(inputs.config, inputs.dataset)))
    return outlook(prepare_opened(inputs))


def all_cautions(inputs: RunInputs) -> tuple[str, ...]:
    """Warnings about the checkpoint, the settings and the dataset of a run."""
    config = inputs.config
    about_checkpoint = cautions(inputs.checkpoint, inputs.family, config.objective.prediction)
    about_settings = settings_cautions(config, trigger_words(config.dataset))
    return (*about_checkpoint, *about_settings)
