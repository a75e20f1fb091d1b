"""Attention layers with the kernel that was chosen for the run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..runs.run_plan import RunPlan
from .acceleration import Acceleration, Context
from .attention_processor import heads_first, set_kernel

if TYPE_CHECKING:
    from torch import nn


class FasterAttention(Acceleration):
    """``training.attention``: xformers where it was chosen; on a CPU torch's own, with queries, keys and values computed together."""

    title = "faster attention"

    def is_wanted(self, context: Context) -> bool:
        """Always: ``choose_attention`` has chosen what works."""
        return True

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """Always."""
        return True

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Set the processors of the attention layers. On a GPU, diffusers' own already use torch's kernels."""
        if context.attention == "xformers":
            set_kernel(denoiser, importlib.import_module("xformers.ops").memory_efficient_attention)
        elif context.device.type == "cpu":
            from torch.nn.functional import scaled_dot_product_attention

            set_kernel(denoiser, heads_first(scaled_dot_product_attention))
