"""A frozen base in 8 or 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config.run_config import RunConfig
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Context

if TYPE_CHECKING:
    from torch import nn


class QuantisedBase(Acceleration):
    """``training.base_precision``."""

    title = "a quantised base"

    def is_wanted(self, context: Context) -> bool:
        """Unless the base keeps its precision."""
        return context.config.training.base_precision != "same"

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """Unless the base keeps its precision."""
        return config.training.base_precision != "same"

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Replace the layers, one after the other, on the device. Raises UserError when ``nf4`` lacks its package."""
        from .quantise import quantise

        quantise(denoiser, context.config.training.base_precision, context.device)
