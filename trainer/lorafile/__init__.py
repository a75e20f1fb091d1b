"""LoRA files of every tool: read, write, convert, shrink, merge, describe; their key names and metadata. May import core."""

from __future__ import annotations

from .anima_depth import depth_mismatch
from .changing.blocks import move_to_depth
from .changing.merge import common_dtype, merge
from .changing.merge_into_checkpoint import merge_into_checkpoint
from .changing.rank import RankReport, reduce_rank
from .describing.card import Card, called_by, card
from .describing.information import LoraInfo, describe_lora, inspect_lora, trigger_words
from .describing.sidecar import companions, split_words
from .family_detection import mismatch, stated_family
from .naming.family_layouts import FAMILY_LAYOUTS, FAMILY_TITLES
from .naming.kohya_names import kohya_text_encoder_key, kohya_unet_key, settings_name
from .naming.unet_names import UNetLayout, diffusers_to_ldm, ldm_to_diffusers
from .reading.read_lora import read_lora, scan_lora
from .weights import LoraModule, LoraWeights
from .writing.convert import DTYPES, FORMATS, convert, to_comfyui, to_kohya, write_lora
from .writing.converted import Converted
from .writing.edit import FIELDS, edit_metadata, edited
from .writing.metadata import build_metadata
from .writing.save import legacy_hash, matches_own_hash, save_lora, verify_lora
from .writing.training_facts import SubsetFacts, TrainingFacts
from .writing.without_alpha import to_diffusers, to_peft

__all__ = [
    "DTYPES",
    "FAMILY_LAYOUTS",
    "FAMILY_TITLES",
    "FIELDS",
    "FORMATS",
    "Card",
    "Converted",
    "LoraInfo",
    "LoraModule",
    "LoraWeights",
    "RankReport",
    "SubsetFacts",
    "TrainingFacts",
    "UNetLayout",
    "build_metadata",
    "called_by",
    "card",
    "common_dtype",
    "companions",
    "convert",
    "depth_mismatch",
    "describe_lora",
    "diffusers_to_ldm",
    "edit_metadata",
    "edited",
    "inspect_lora",
    "kohya_text_encoder_key",
    "kohya_unet_key",
    "ldm_to_diffusers",
    "legacy_hash",
    "matches_own_hash",
    "merge",
    "merge_into_checkpoint",
    "mismatch",
    "move_to_depth",
    "read_lora",
    "reduce_rank",
    "save_lora",
    "scan_lora",
    "settings_name",
    "split_words",
    "stated_family",
    "to_comfyui",
    "to_diffusers",
    "to_kohya",
    "to_peft",
    "trigger_words",
    "verify_lora",
    "write_lora",
]
