"""Frozen transformer blocks in main memory, copied to the GPU just before they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config.run_config import RunConfig
from ...core import devices
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Context
from ..denoiser_setup import sequential_blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

_IN_FLIGHT = 2  # the block that computes and the one that is copied meanwhile


class SwappedBlocks(Acceleration):
    """``training.swap_blocks``."""

    title = "block swap"

    def is_wanted(self, context: Context) -> bool:
        """When blocks are to be swapped, and the device has memory of its own."""
        return context.config.training.swap_blocks > 0 and devices.has_own_memory(context.device)

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """When the plan found blocks that can be swapped."""
        return config.training.swap_blocks > 0 and plan.swappable_blocks > 0

    def extra_bytes(self, denoiser: nn.Module, context: Context) -> int:
        """Less than nothing: the swapped blocks do not count, except for two at a time."""
        sizes = [_frozen_bytes(block, context.dtype) for block in _chosen(denoiser, context.config.training.swap_blocks)]
        return sum(sorted(sizes, reverse=True)[:_IN_FLIGHT]) - sum(sizes)

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Move the frozen tensors of the blocks to the host, and fetch each block when it computes."""
        from .block_swap import BlockSwap
        from .copy_stream import copy_stream

        BlockSwap(denoiser, _chosen(denoiser, context.config.training.swap_blocks), copy_stream(context.device, context.warn))


def spread(count: int, total: int) -> list[int]:
    """``count`` of the numbers below ``total``, evenly spread: the blocks between two of them compute while the next one is copied."""
    return [index for index in range(total) if (index + 1) * count // total > index * count // total]


def _chosen(denoiser: nn.Module, count: int) -> list[nn.Module]:
    blocks = sequential_blocks(denoiser)
    return [blocks[index] for index in spread(min(count, len(blocks)), len(blocks))]


def _frozen_bytes(block: nn.Module, dtype: torch.dtype) -> int:
    parameters = sum(parameter.numel() for parameter in block.parameters() if not parameter.requires_grad)
    return parameters * dtype.itemsize + sum(buffer.nbytes for buffer in block.buffers())
