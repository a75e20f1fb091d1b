"""Preparing a run: its inputs are opened and checked once, and its run folder gets what the training child reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..adapters.start_from import lora_identity, require_lora
from ..config.run_config import RunConfig, absolute
from ..core.disk_errors import as_disk_error
from ..core.files.paths import require_short_path
from ..core.files.reading import require_own_file
from ..core.files.writing import remove_partial, write_atomic
from ..families import Family
from ..objective.choose import choose_prediction
from ..plan.inputs import RunInputs, open_inputs
from ..plan.planning import dataset_steps, total_steps
from ..runs.lineage import write_lineage
from ..runs.run_folder import RunFolder, cache_folder, lineage_identity, locate_run_folder, run_identity
from ..runs.states import state_folders
from .accelerate_config import accelerate_config


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start. ``folder`` need not exist yet."""

    folder: RunFolder
    config: RunConfig  # with absolute paths, and with its memory preset filled in
    family: Family
    lineage: str = ""
    steps: int = 0
    steps_per_epoch: int = 0


def prepare_run(config: RunConfig) -> PreparedRun:
    """Open what ``config`` names, so that bad input fails before a child is started. Raises UserError for it."""
    config = absolute(config)
    with disk_errors_explained(Path(config.output.runs)):
        return prepare_opened(open_inputs(config))


def prepare_opened(inputs: RunInputs) -> PreparedRun:
    """The run of inputs that are open, with absolute paths in their configuration. Raises UserError for settings that do not fit them."""
    config = inputs.config
    with disk_errors_explained(Path(config.output.runs)):
        checkpoint, cache = inputs.checkpoint, cache_folder(config)
        choose_prediction(inputs.family, checkpoint, config.objective)
        start = ""
        if config.base.lora:
            require_lora(Path(config.base.lora))
            start = lora_identity(Path(config.base.lora), cache)
        made_from = (inputs.dataset.hash, checkpoint.identity(cache), start)
        identity = run_identity(config, *made_from)
        per_epoch = dataset_steps(config, inputs.dataset)
        folder = locate_run_folder(config, identity)
        require_short_path(folder.longest)
    lineage = lineage_identity(config, *made_from)
    return PreparedRun(folder, config, inputs.family, lineage, total_steps(config, per_epoch), per_epoch)


def write_run_folder(run: PreparedRun, given_accelerate_config: Path | None = None) -> None:
    """Make the run folder with the two files that the child is started with: the run's configuration and accelerate's.

    Raises UserError if ``given_accelerate_config``, a file to launch with in place of ours, cannot be read.
    """
    folder = run.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    for path in (folder.events, folder.log):
        require_own_file(path)
    remove_partial(folder.path, folder.checkpoints, folder.samples, *state_folders(folder.checkpoints))
    write_atomic(folder.config, run.config.to_json())
    if run.lineage:
        write_lineage(folder, run.lineage, steps=run.steps, steps_per_epoch=run.steps_per_epoch)
    write_atomic(folder.accelerate_config, accelerate_config(run.config, given_accelerate_config))


@contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """A full disk and a folder that cannot be written as a UserError."""
    try:
        yield
    except OSError as error:
        if (explained := as_disk_error(error, folder)) is None:
            raise
        raise explained from error
