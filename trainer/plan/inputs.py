"""What a run reads: its datasets and its checkpoint, each opened once."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.run_config import RunConfig
from ..dataset import Dataset
from ..dataset.loading.open import open_training
from ..families import BaseCheckpoint, Family, family_of, open_checkpoint
from .image_sizes import require_sizes
from .meta_models import MetaModels
from .settle import settle_memory


@dataclass(frozen=True)
class RunInputs:
    """The opened inputs of a run, and its configuration with the memory preset filled in for them."""

    config: RunConfig
    dataset: Dataset  # the images to train on
    held_out: Dataset  # the images for validation
    regularisation: str  # a sentence about the share of regularisation images; empty without any
    checkpoint: BaseCheckpoint
    family: Family


def open_inputs(config: RunConfig, models: MetaModels | None = None) -> RunInputs:
    """Open what ``config`` names. ``models``: those of earlier plans of the run.

    Raises UserError for a dataset or checkpoint that is missing, damaged or not the one that was chosen.
    """
    opened = open_training(config)
    checkpoint = open_checkpoint(config.base.checkpoint, config.base.vae, config.base.text_encoder)
    family = family_of(checkpoint)
    require_sizes(family, opened.all_images)
    # held-out images count, too: validation has to fit into memory
    config = _with_found_parts(config, checkpoint)
    settled = settle_memory(config, opened.all_images, family, checkpoint, models)
    return RunInputs(settled, opened.training, opened.held_out, opened.regularisation, checkpoint, family)


def _with_found_parts(config: RunConfig, checkpoint: BaseCheckpoint) -> RunConfig:
    """``config`` with the files that were found for the checkpoint, so that the training process reads the same ones."""
    parts = {"vae": checkpoint.vae, "text_encoder": checkpoint.text_encoder}
    found = {name: str(part.path) for name, part in parts.items() if part is not None and not getattr(config.base, name)}
    return config.model_copy(update={"base": config.base.model_copy(update=found)}) if found else config
