"""Model families: which base checkpoints there are, how to load them and encode with them, and what a LoRA adapts. May import core."""

from __future__ import annotations

from .checkpoints.base_checkpoint import BaseCheckpoint
from .interface import PLAIN_TEXT, TEXT_CHUNK, Family, Flow, Framing, LatentSpace, TextEncoder, TextSettings, supported_predictions
from .open_checkpoint import open_checkpoint
from .prediction import EPSILON, FLOW, Prediction, choose_kind
from .registry import FAMILIES, family_named, family_of, is_base_model
from .stable_diffusion.cautions import cautions
from .stable_diffusion.vae import describe_latents

__all__ = [
    "EPSILON",
    "FAMILIES",
    "FLOW",
    "PLAIN_TEXT",
    "TEXT_CHUNK",
    "BaseCheckpoint",
    "Family",
    "Flow",
    "Framing",
    "LatentSpace",
    "Prediction",
    "TextEncoder",
    "TextSettings",
    "cautions",
    "choose_kind",
    "describe_latents",
    "family_named",
    "family_of",
    "is_base_model",
    "open_checkpoint",
    "supported_predictions",
]
