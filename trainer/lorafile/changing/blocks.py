"""Move an Anima LoRA to a model with more blocks."""

from __future__ import annotations

from dataclasses import replace

from ...core.errors import UserError
from ..anima_depth import ANIMA_BLOCKS, DEPTH_KEY, positions, stated_depth
from ..naming.anima_names import block_of, in_block
from ..weights import LoraModule, LoraWeights


def move_to_depth(weights: LoraWeights, depth: int) -> LoraWeights:
    """``weights`` for Anima's 28 blocks as a LoRA with the same effect on these blocks in a model with ``depth`` blocks.

    The blocks that the larger model has in addition are not changed. Raises UserError for a LoRA for another family or depth.
    """
    if weights.family != "anima":
        raise UserError("Only LoRAs for Anima can be moved to a model with more blocks.", "Leave the number of blocks out.", kind="lora")
    where = positions(depth)
    if weights.blocks > ANIMA_BLOCKS or stated_depth(weights.metadata) > ANIMA_BLOCKS:
        made_for = max(weights.blocks, stated_depth(weights.metadata))
        raise UserError(
            f"This LoRA was made for a model with {made_for} blocks.", f"Only those for Anima's {ANIMA_BLOCKS} can be moved.", kind="lora"
        )
    modules = tuple(_moved(module, where) for module in weights)
    return replace(weights, modules=modules, metadata={**weights.metadata, DEPTH_KEY: str(depth)})


def _moved(module: LoraModule, where: list[int]) -> LoraModule:
    block = block_of(module.name) if module.component == "unet" else None
    return module if block is None else replace(module, name=in_block(module.name, where[block]))
