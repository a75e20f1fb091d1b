"""The denoiser's blocks on a GPU with fewer passes over memory, by kernels in Triton."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ...config.run_config import RunConfig
from ...core.messages import Message, Setting
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Context
from ..denoiser_setup import channels_last

if TYPE_CHECKING:
    import torch
    from torch import nn


class FusedBlocks(Acceleration):
    """``training.fused``."""

    title = Message("fused kernels (", Setting("training.fused"), ")")

    def is_wanted(self, context: Context) -> bool:
        """On a GPU, channels last; not for a compiler, which fuses by itself."""
        training = context.config.training
        suits = training.fused != "off" and context.device.type == "cuda" and not training.compile
        return suits and channels_last(training.channels_last, context.device, context.dtype)

    def is_required(self, config: RunConfig) -> bool:
        """When the setting is on."""
        return config.training.fused == "on"

    def problem(self, context: Context) -> str:
        """Tries the kernels."""
        return kernels_problem(context.device, context.dtype)

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """When the kernels worked while the run was planned."""
        return plan.fused

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Change the classes of the blocks."""
        from .unet_blocks import fuse

        fuse(denoiser)


@lru_cache
def kernels_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels cannot be used: no Triton (torch for Windows has none), no C compiler, a GPU unknown to it; "" where they can."""
    import torch

    try:
        from .kernel_check import kernel_problem
    except Exception as error:  # a Triton that does not fit this torch fails with anything
        return str(error) or type(error).__name__
    with torch.inference_mode(False), torch.enable_grad():  # a plan is also made in ComfyUI, whose nodes run without gradients
        return kernel_problem(device, dtype)
