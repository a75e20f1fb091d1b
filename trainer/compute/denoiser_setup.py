"""How the frozen denoiser computes: accelerations, memory layout, gradient checkpointing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .acceleration import Acceleration, Context

if TYPE_CHECKING:
    import torch
    from torch import nn

_BLOCKS = (
    "BasicTransformerBlock",
    "ResnetBlock2D",
    "CosmosTransformerBlock",
    "Lumina2Block",
)  # repeated many times with few shapes; also what checkpointing recomputes at once


def prepare_denoiser(denoiser: nn.Module, accelerations: Sequence[Acceleration], context: Context) -> None:
    """Set up the frozen ``denoiser`` in place, before adapters go in."""
    import torch

    for acceleration in accelerations:
        acceleration.prepare(denoiser, context)
    training = context.config.training
    if channels_last(training.channels_last, context.device, context.dtype):
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.gradient_checkpointing:
        enable_checkpointing(denoiser, draws_random_numbers=context.config.network.dropout > 0)
    if context.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # there are few shapes: one for each bucket


def enable_checkpointing(denoiser: Any, *, draws_random_numbers: bool) -> None:
    """Have every block computed again in the backward pass.

    By default, torch copies the state of the random numbers from the GPU at every block, which waits for the GPU and cannot be part of a
    CUDA graph. Where no random number is drawn, that is left out.
    """
    from torch.utils.checkpoint import checkpoint

    def without_random_state(module: Any, *args: Any) -> Any:
        return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)

    takes_function = "gradient_checkpointing_func" in inspect.signature(denoiser.enable_gradient_checkpointing).parameters
    denoiser.enable_gradient_checkpointing(*([without_random_state] if takes_function and not draws_random_numbers else []))


def channels_last(setting: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions get channels-last tensors. ``auto``: where tensor cores want them, CUDA in half precision, and on a CPU."""
    return setting == "on" or (setting == "auto" and (device.type == "cpu" or dtype.itemsize == 2))


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The repeated blocks of ``denoiser``."""
    return [module for module in denoiser.modules() if _is_block(module)]


def sequential_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, each of which computes on the result of the one before it. A UNet has none."""
    from torch import nn

    lists = [child for child in denoiser.children() if isinstance(child, nn.ModuleList)]
    return [module for modules in lists for module in modules if _is_block(module)]


def _is_block(module: nn.Module) -> bool:
    return any(kind.__name__ in _BLOCKS for kind in type(module).__mro__)
