"""How many blocks an Anima model has, and whether a LoRA belongs to a model with that many.

Anima has 28 blocks. Anima-2.9B (40 blocks) was made from it by inserting copies between them (LLaMA Pro, Wu et al., arXiv 2401.02415): its
file ``expand_manifest.json`` lists the 12 inserted blocks, and the other 28 are Anima's, bit for bit. So the blocks of a LoRA for Anima
have other numbers there, and without renumbering it would change the wrong blocks without an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import UserError
from ..core.messages import ExportOption, Message

ANIMA_BLOCKS = 28
INSERTED = {40: (2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36)}  # depth: the positions that are not Anima's own blocks
_RELEASED = (ANIMA_BLOCKS, 40, 52)  # depths of released models
DEPTH_KEY = "modelspec.anima_source_blocks"  # metadata of SwarmUI and others; only files that do not reach the last block need it
_DEPTH_KEYS = (DEPTH_KEY, "anima_source_blocks")


def positions(depth: int) -> list[int]:
    """The position of each of Anima's 28 blocks in a model with ``depth`` blocks. Raises UserError for an unknown depth."""
    if depth not in INSERTED:
        known = ", ".join(map(str, INSERTED))
        raise UserError(
            f"Where models with {depth} blocks have the blocks of Anima is not known.",
            f"LoRAs can be moved to {known} blocks.",
            kind="lora",
        )
    return [position for position in range(depth) if position not in INSERTED[depth]]


def stated_depth(metadata: Mapping[str, str]) -> int:
    """The number of blocks that the metadata states; 0 when it states none."""
    text = next((metadata[key].strip() for key in _DEPTH_KEYS if key in metadata), "")
    return int(text) if text.isdecimal() and len(text) < 5 else 0


def depth_mismatch(blocks: int, model_blocks: int, metadata: Mapping[str, str]) -> UserError | None:
    """Why a LoRA does not fit a model with ``model_blocks`` blocks; None when it does. ``blocks`` is ``LoraWeights.blocks``."""
    made_for = _made_for(blocks, model_blocks, stated_depth(metadata))
    if not blocks or not model_blocks or made_for == model_blocks:
        return None
    moved = made_for == ANIMA_BLOCKS and model_blocks in INSERTED
    return UserError(
        f"This LoRA was made for Anima with {made_for} blocks and the model has {model_blocks}.",
        Message("Move its layers to the same blocks of this model with ", ExportOption("blocks", model_blocks), ".")
        if moved
        else f"Use a LoRA that was trained on a model with {model_blocks} blocks.",
        kind="lora",
    )


def _made_for(blocks: int, model_blocks: int, stated: int) -> int:
    """The depth that a LoRA which needs ``blocks`` blocks was made for: the stated one, otherwise the smallest released one."""
    if stated >= blocks:
        return stated
    depths = _RELEASED if model_blocks in _RELEASED else (model_blocks,)
    return next((depth for depth in depths if blocks <= depth), blocks)
