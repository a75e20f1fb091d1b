"""All model families, and which of them a base checkpoint belongs to. A new family is added to ``FAMILIES``."""

from __future__ import annotations

from contextlib import suppress

from ..core.errors import UserError
from .checkpoints.base_checkpoint import BaseCheckpoint
from .interface import Family
from .sd1 import FAMILY as SD1
from .sd2 import FAMILY as SD2
from .sdxl import FAMILY as SDXL
from .stable_diffusion.unsupported import refuse_special_models, why_unrecognised

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)


def family_of(checkpoint: BaseCheckpoint) -> Family:
    """The family that recognises ``checkpoint``. Raises UserError, which says what the checkpoint looks like, when none does."""
    refuse_special_models(checkpoint)
    for family in FAMILIES:
        recognised = False
        with suppress(KeyError, IndexError, StopIteration, ValueError, TypeError):  # tensor shapes that fit no family
            recognised = family.recognises(checkpoint)
        if recognised:
            family.require_parts(checkpoint)
            return family
    reason = why_unrecognised(checkpoint)
    raise UserError(
        f"AnimeLoRA cannot train on {checkpoint.name}" + (f": {reason}." if reason else "."),
        "Supported models: " + ", ".join(family.title for family in FAMILIES) + ".",
        kind="checkpoint",
    )


def family_named(name: str) -> Family:
    """The family called ``name`` (for example ``"sd1"``)."""
    return next(family for family in FAMILIES if family.name == name)
