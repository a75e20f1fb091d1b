"""Model families: which base checkpoints there are, how to load them and encode with them, and what a LoRA adapts. May import core."""

from __future__ import annotations

from .checkpoints.base_checkpoint import BaseCheckpoint
from .interface import PLAIN_TEXT, TEXT_CHUNK, Family, Framing, LatentSpace, TextEncoder, TextSettings
from .open_checkpoint import open_checkpoint
from .prediction import EPSILON, Prediction, require_supported
from .registry import FAMILIES, family_named, family_of
from .stable_diffusion.cautions import cautions

__all__ = [
    "EPSILON",
    "FAMILIES",
    "PLAIN_TEXT",
    "TEXT_CHUNK",
    "BaseCheckpoint",
    "Family",
    "Framing",
    "LatentSpace",
    "Prediction",
    "TextEncoder",
    "TextSettings",
    "cautions",
    "family_named",
    "family_of",
    "open_checkpoint",
    "require_supported",
]
