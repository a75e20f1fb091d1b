"""Parse one key of a LoRA file for Lumina 2, in the naming of kohya's trainer, LyCORIS or ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..algorithms.kinds import SUFFIXES
from .lumina2_names import is_in_block, lumina2_module
from .parsed_key import ParsedKey, split_tail

_KOHYA = re.compile(r"(lora_unet|lycoris|lora_te)_([^.]+)\.(.+)")
_DOTTED = (
    ("text_encoders.gemma2_2b.transformer.model.", "te1"),
    ("diffusion_model.", "unet"),
)


def is_lumina2_file(keys: Iterable[str]) -> bool:
    """Whether a file with these keys changes a block of Lumina 2. Other keys leave it open: its last layer has the same name as Anima's,
    and Gemma 2's layers have those of Qwen3."""
    parsed = (parse_lumina2_key(key) for key in keys)
    return any(each is not None and each.component == "unet" and is_in_block(each.module) for each in parsed)


def parse_lumina2_key(key: str) -> ParsedKey | None:
    """The layer and tensor that ``key`` names; None when it is malformed or Lumina 2 has no such layer."""
    if match := _KOHYA.fullmatch(key):
        return _parsed("te1" if match[1] == "lora_te" else "unet", match[2], match[3], "kohya")
    for prefix, component in _DOTTED:
        if key.startswith(prefix):
            split = split_tail(key[len(prefix) :], "comfyui")
            return _parsed(component, split[0], split[1], "comfyui") if split else None
    return None


def _parsed(component: str, name: str, suffix: str, form: str) -> ParsedKey | None:
    module = lumina2_module(component, name)
    if module is None or suffix not in SUFFIXES:
        return None
    return ParsedKey(component, module, suffix, form, original=True)
