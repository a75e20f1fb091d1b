"""LoRA files: write, read whoever's naming, convert, shrink, merge, describe. The one place that knows key names and metadata."""

from __future__ import annotations

from .family import FAMILY_NAME, mismatch
from .information import LoraInfo, describe, inspect_lora, trigger_words
from .metadata import TrainingFacts, build_metadata
from .names import kohya_text_encoder_key, kohya_unet_key
from .read import read_lora, scan_lora
from .save import save_lora, verify_lora
from .unet_names import LAYOUTS, UNetLayout, diffusers_to_ldm, ldm_to_diffusers
from .weights import LoraModule, LoraWeights

__all__ = [
    "FAMILY_NAME",
    "LAYOUTS",
    "LoraInfo",
    "LoraModule",
    "LoraWeights",
    "TrainingFacts",
    "UNetLayout",
    "build_metadata",
    "describe",
    "diffusers_to_ldm",
    "inspect_lora",
    "kohya_text_encoder_key",
    "kohya_unet_key",
    "ldm_to_diffusers",
    "mismatch",
    "read_lora",
    "save_lora",
    "scan_lora",
    "trigger_words",
    "verify_lora",
]
