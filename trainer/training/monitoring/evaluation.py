"""What every evaluation of a run's weights uses: validation loss and validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...config.run_config import RunConfig
from ...runs.run_plan import RunPlan
from ..caching.cache import CacheReader
from ..model import TrainedModel
from ..opened_run import Hardware
from ..train_state import TrainState
from .outputs import Outputs


@dataclass(frozen=True)
class Evaluation:
    """The model, its state and where results go. ``stop`` returns whether a stop was requested."""

    config: RunConfig
    plan: RunPlan
    cache: CacheReader
    model: TrainedModel
    state: TrainState
    hardware: Hardware
    outputs: Outputs
    stop: Callable[[], bool]
