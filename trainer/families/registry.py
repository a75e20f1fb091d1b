"""All model families, and which of them a base checkpoint belongs to. A new family is added to ``FAMILIES``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..core.errors import UserError
from .anima.anima_family import FAMILY as ANIMA
from .checkpoints.base_checkpoint import BaseCheckpoint
from .interface import Family
from .lumina2.lumina2_family import FAMILY as LUMINA2
from .sd1 import FAMILY as SD1
from .sd2 import FAMILY as SD2
from .sdxl import FAMILY as SDXL
from .stable_diffusion.unsupported import refuse_special_models, why_unrecognised

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL, ANIMA, LUMINA2)


def family_of(checkpoint: BaseCheckpoint) -> Family:
    """The family that recognises ``checkpoint``. Raises UserError, which says what the checkpoint looks like, when none does."""
    refuse_special_models(checkpoint)
    if family := recognising_family(checkpoint):
        family.require_parts(checkpoint)
        return family
    reason = why_unrecognised(checkpoint)
    raise UserError(
        f"AnimeLoRA cannot train on {checkpoint.name}" + (f": {reason}." if reason else "."),
        "Supported models: " + ", ".join(family.title for family in FAMILIES) + ".",
        kind="checkpoint",
    )


def recognising_family(checkpoint: BaseCheckpoint) -> Family | None:
    """The family that recognises ``checkpoint``, whether or not the checkpoint is complete; None if there is none."""
    for family in FAMILIES:
        with suppress(KeyError, IndexError, StopIteration, ValueError, TypeError):  # tensor shapes that fit no family
            if family.recognises(checkpoint):
                return family
    return None


def is_base_model(path: Path) -> bool:
    """Whether a family recognises the .safetensors file ``path``, by its header. It need not be complete."""
    if path.suffix.lower() != ".safetensors":
        return False
    with suppress(UserError):  # damaged
        return recognising_family(BaseCheckpoint(path, "file")) is not None
    return False


def family_named(name: str) -> Family:
    """The family called ``name`` (for example ``"sd1"``)."""
    return next(family for family in FAMILIES if family.name == name)
