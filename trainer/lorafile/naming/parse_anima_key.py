"""Parse one key of a LoRA file for Anima, in the naming of any trainer."""

from __future__ import annotations

import re

from ..algorithms.kinds import SUFFIXES
from .anima_names import anima_module
from .parsed_key import ParsedKey, split_tail

# kohya's names; LyCORIS' and SimpleTuner's own prefix is "lycoris"
_KOHYA = re.compile(r"(lora_unet_llm_adapter|lycoris_llm_adapter|lora_unet|lycoris|lora_te1|lora_te)_([^.]+)\.(.+)")
_KOHYA_COMPONENT = {
    "lora_unet_llm_adapter": "adapter", "lycoris_llm_adapter": "adapter", "lora_unet": "unet", "lycoris": "unet",
    "lora_te": "te1", "lora_te1": "te1",
}  # fmt: skip

# dotted formats: prefix of the key, component, format; longer prefixes first
_DOTTED = (
    ("base_model.model.llm_adapter.", "adapter", "peft"),
    ("base_model.model.", "unet", "peft"),
    ("diffusion_model.llm_adapter.", "adapter", "comfyui"),
    ("diffusion_model.", "unet", "comfyui"),
    ("text_encoders.qwen3_06b.transformer.model.", "te1", "comfyui"),
    ("transformer.llm_adapter.", "adapter", "peft"),
    ("transformer.", "unet", "peft"),
    ("text_conditioner.", "adapter", "peft"),
    ("net.llm_adapter.", "adapter", "comfyui"),
    ("net.", "unet", "comfyui"),
    ("llm_adapter.", "adapter", "comfyui"),
    ("", "unet", "peft"),
)


def parse_anima_key(key: str) -> ParsedKey | None:
    """The layer and tensor that ``key`` names; None when it is malformed or Anima has no such layer."""
    if match := _KOHYA.fullmatch(key):
        prefix, name, suffix = match.groups()
        return _parsed(_KOHYA_COMPONENT[prefix], name, suffix, "kohya")
    for prefix, component, form in _DOTTED:
        if key.startswith(prefix):
            split = split_tail(key[len(prefix) :], form)
            return _parsed(component, split[0], split[1], form) if split else None
    return None


def _parsed(component: str, name: str, suffix: str, form: str) -> ParsedKey | None:
    module = anima_module(component, name)
    if module is None or suffix not in SUFFIXES:
        return None
    return ParsedKey(component, module, suffix, form, original=name.replace(".", "_") != module.replace(".", "_"))
