"""The frozen base on a CPU with its weights in oneDNN's own memory layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config.run_config import RunConfig
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Context

if TYPE_CHECKING:
    from torch import nn


class OneDnnLayers(Acceleration):
    """Packs the weights of layers once, where oneDNN would do it in every call.

    Images of several sizes want other layouts from step to step; DoRA reads plain weights in every step; compiled blocks and a quantised
    base have layers of their own.
    """

    title = "weights packed for the CPU"

    def is_wanted(self, context: Context) -> bool:
        """On a CPU, for images of one size."""
        training, network = context.config.training, context.config.network
        suits = context.device.type == "cpu" and context.buckets == 1
        return suits and not (network.dora or training.compile or training.base_precision != "same")

    def problem(self, context: Context) -> str:
        """Tries the operators."""
        from .onednn_layers import layers_agree

        return "" if layers_agree(context.dtype) else "oneDNN's operators do not compute what torch's layers do"

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """When the plan found room for the second copy of the weights."""
        return plan.prepacked

    def extra_bytes(self, denoiser: nn.Module, context: Context) -> int:
        """The weights packed for the backward pass."""
        from .onednn_layers import packed_bytes

        return packed_bytes(denoiser, context.dtype)

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Replace the layers; their weights are packed at the first call."""
        from .onednn_layers import replace_layers

        replace_layers(denoiser)
