"""What a run reads: its datasets and its checkpoint, each opened once."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.run_config import RunConfig
from ..dataset import Dataset
from ..dataset.loading.open import open_training
from ..families import BaseCheckpoint, Family, family_of, open_checkpoint
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


def open_inputs(config: RunConfig) -> RunInputs:
    """Open what ``config`` names. Raises UserError for a dataset or checkpoint that is missing, damaged or not the one that was chosen."""
    opened = open_training(config)
    checkpoint = open_checkpoint(config.base.checkpoint, config.base.vae)
    family = family_of(checkpoint)
    # held-out images count, too: validation has to fit into memory
    settled = settle_memory(config, opened.all_images, family, checkpoint)
    return RunInputs(settled, opened.training, opened.held_out, opened.regularisation, checkpoint, family)
