"""Parse the keys of a LoRA file, in any known naming: which layer and which tensor each is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..algorithms.kinds import SUFFIXES
from .kohya_names import dotted
from .parse_anima_key import parse_anima_key
from .parse_lumina2_key import is_lumina2_file, parse_lumina2_key
from .parsed_key import ParsedKey, split_tail
from .unet_names import UNetLayout, is_ldm_name, ldm_to_diffusers

_LONGEST = 300  # characters; a number with thousands of digits is not the index of a layer
_KOHYA = re.compile(r"(lora_unet|lora_te1|lora_te2|lora_te|lycoris)_([^.]+)\.(.+)")
_KOHYA_COMPONENT = {"lora_unet": "unet", "lycoris": "unet", "lora_te": "te1", "lora_te1": "te1", "lora_te2": "te2"}

# dotted formats: prefix of the key, component (None: follows from the module name), format; longer prefixes first
_DOTTED = (
    ("base_model.model.", None, "peft"),
    ("text_encoders.clip_l.transformer.", "te1", "comfyui"),
    ("text_encoders.clip_g.transformer.", "te2", "comfyui"),
    ("text_encoders.clip_h.transformer.", "te1", "comfyui"),
    ("diffusion_model.", "unet", "comfyui"),
    ("text_encoder_2.", "te2", "diffusers"),
    ("text_encoder.", "te1", "diffusers"),
    ("clip_l.", "te1", "onetrainer"),
    ("clip_g.", "te2", "onetrainer"),
    ("unet.", "unet", "diffusers"),
    ("", None, "diffusers"),
)

_UNET_ROOTS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding")
_TEXT_ROOTS = ("text_model", "text_projection")
_SHORT_TEXT_ROOTS = ("encoder", "embeddings", "final_layer_norm")


def parse_keys(keys: Sequence[str], layout: UNetLayout) -> Iterator[tuple[str, ParsedKey | None]]:
    """Each key of a file, and the layer and tensor that it names; None when it is malformed or belongs to another kind of model."""
    readable = [key for key in keys if len(key) <= _LONGEST]
    is_lumina2 = is_lumina2_file(readable)
    known = set(readable)
    for key in keys:
        if key not in known:
            yield key, None
        elif is_lumina2:
            yield key, parse_lumina2_key(key)
        else:
            yield key, _parse_stable_diffusion(key, layout) or parse_anima_key(key)


def _parse_stable_diffusion(key: str, layout: UNetLayout) -> ParsedKey | None:
    match = _KOHYA.fullmatch(key)
    if match:
        prefix, name, suffix = match.groups()
        module = dotted(name)
        return _finish(_KOHYA_COMPONENT[prefix], module, suffix, "kohya", layout) if module else None
    for prefix, component, form in _DOTTED:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            if form == "diffusers" and rest.startswith("base_model.model."):
                rest, form = rest[len("base_model.model.") :], "peft"
            split = split_tail(rest, form)
            return _finish(component, split[0], split[1], split[2], layout) if split else None
    return None


def _finish(component: str | None, module: str, suffix: str, form: str, layout: UNetLayout) -> ParsedKey | None:
    if suffix not in SUFFIXES:
        return None
    root = module.split(".", 1)[0]
    ldm = False
    if component in (None, "unet") and is_ldm_name(module):
        found = ldm_to_diffusers(module, layout)
        if found is None:
            return None
        module, root, ldm = found, found.split(".", 1)[0], True
    if root in _UNET_ROOTS and component in (None, "unet"):
        component = "unet"
    elif root in _TEXT_ROOTS + _SHORT_TEXT_ROOTS and component != "unet":
        component = component or "te1"
        if root in _SHORT_TEXT_ROOTS:
            module = f"text_model.{module}"
    else:
        return None
    return ParsedKey(component, module, suffix, form, ldm) if dotted(module.replace(".", "_")) == module else None
