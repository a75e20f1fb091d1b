"""The blocks of Anima's transformer in fewer operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config.run_config import RunConfig
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Context

if TYPE_CHECKING:
    from torch import nn


class CosmosBlocks(Acceleration):
    """Norms, rotations and gates in few operations; queries, keys and values together."""

    title = "faster transformer blocks"

    def is_wanted(self, context: Context) -> bool:
        """Everywhere, but not for a compiler, which joins operations by itself."""
        return not context.config.training.compile

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """Everywhere, but not for a compiler."""
        return not config.training.compile

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Change the classes of the blocks. Denoisers without such blocks stay as they are."""
        if any(type(module).__name__ == "CosmosTransformerBlock" for module in denoiser.modules()):
            from .transformer_block import replace_blocks

            replace_blocks(denoiser, context.dtype)
