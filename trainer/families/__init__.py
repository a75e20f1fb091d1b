"""Model families. Adding one is adding a file with a ``FAMILY`` and naming it here."""

from __future__ import annotations

from contextlib import suppress

from ..core.errors import UserError
from .base import EPSILON, PLAIN_TEXT, Family, Framing, Prediction, TextEncoder, TextSettings
from .checkpoint import BaseCheckpoint
from .markers import cautions, more_channels, read_json, require_known_parts, require_supported
from .open_checkpoint import open_checkpoint
from .parts import require_parts
from .sd1 import FAMILY as SD1
from .sd2 import FAMILY as SD2
from .sdxl import FAMILY as SDXL

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)

__all__ = [
    "EPSILON",
    "FAMILIES",
    "PLAIN_TEXT",
    "BaseCheckpoint",
    "Family",
    "Framing",
    "Prediction",
    "TextEncoder",
    "TextSettings",
    "cautions",
    "family_named",
    "family_of",
    "open_checkpoint",
    "require_supported",
]


def family_of(checkpoint: BaseCheckpoint) -> Family:
    """The family that recognises ``checkpoint``. Raises UserError that says what the file looks like instead."""
    require_known_parts(checkpoint)
    for family in FAMILIES:
        recognised = False
        with suppress(KeyError, IndexError, StopIteration, ValueError, TypeError):  # tensors of shapes that no family has
            recognised = family.recognises(checkpoint)
        if recognised:
            require_parts(checkpoint, family.text_encoders)
            return family
    raise UserError(
        f"{checkpoint.name} is not a checkpoint that this version can train on{_guess(checkpoint)}.",
        "Supported: " + ", ".join(family.title for family in FAMILIES) + ".",
        kind="checkpoint",
    )


def family_named(name: str) -> Family:
    """The family called ``name`` (for example ``"sd1"``)."""
    return next(family for family in FAMILIES if family.name == name)


def _guess(checkpoint: BaseCheckpoint) -> str:
    if checkpoint.kind == "folder":
        return _guess_folder(checkpoint)
    names = list(checkpoint.shapes)
    if any(name.endswith((".lora_down.weight", ".lora_up.weight", ".lora_A.weight")) for name in names):
        return ": it is a LoRA file"
    if any(name.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for name in names):
        return ": it looks like Flux"
    if not any(name.startswith("model.diffusion_model.") for name in names):
        return ": it holds no UNet"
    stem = checkpoint.shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if len(stem) > 1 and stem[1] != 4:
        return f": {more_channels(stem[1])}"
    if "model.diffusion_model.label_emb.0.0.weight" in checkpoint.shapes:
        return ": it looks like SDXL's refiner, or like SDXL without both of its text encoders"
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return ": it looks like SD 2.x without its whole text encoder"
    if not any(name.startswith("cond_stage_model.") for name in names):
        return ": it holds no text encoder"
    return ""


def _guess_folder(checkpoint: BaseCheckpoint) -> str:
    parts = [part for part in ("text_encoder", "text_encoder_2") if (checkpoint.path / part).is_dir()]
    if "addition_time_embed_dim" in (config := read_json(checkpoint.path / "unet" / "config.json")) and len(parts) == 1:
        return f": it looks like SDXL's refiner, or like SDXL with only one of its text encoders ({parts[0]})"
    if not parts:
        return ": it holds no text encoder (text_encoder is missing)"
    kind = config.get("addition_embed_type")
    return f": its UNet has a further input (unet/config.json: addition_embed_type = {kind!r})" if kind is not None else ""
