"""The attention layers of a UNet on a CPU in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..runs.run_plan import RunPlan
from .acceleration import Acceleration, Context
from .attention_processor import heads_first, set_kernel

if TYPE_CHECKING:
    from torch import nn


class CpuAttention(Acceleration):
    """Attention whose backward pass is in fp32."""

    title = "faster attention on the CPU"

    def is_wanted(self, context: Context) -> bool:
        """On a CPU in half precision, without xformers."""
        return context.device.type == "cpu" and context.dtype.itemsize == 2 and context.attention == "sdpa"

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """On a CPU in half precision, without xformers."""
        return plan.device == "cpu" and plan.precision != "fp32" and plan.attention == "sdpa"

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Set the processors of the attention layers, if the operators compute the right numbers."""
        from .flash_attention import attend, operators_agree

        if operators_agree(context.dtype):
            set_kernel(denoiser, heads_first(attend))
