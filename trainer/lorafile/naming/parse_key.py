"""Parse one key of a LoRA file, in any known naming: which layer and which tensor it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..algorithms.kinds import SUFFIXES
from .kohya_names import dotted
from .unet_names import UNetLayout, is_ldm_name, ldm_to_diffusers


@dataclass(frozen=True)
class ParsedKey:
    """A parsed key. ``suffix`` is a LyCORIS tensor name, ``format`` the naming that the key is written in."""

    component: str
    module: str
    suffix: str
    format: str
    ldm: bool = False  # the key has the layer's LDM name


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

# tensor names at the end of a dotted key that identify its format
_PEFT_TAIL = re.compile(r"\.lora_(A|B)(?:\.[A-Za-z0-9_]+)?\.weight$")
_PEFT_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.[A-Za-z0-9_]+)?(?:\.weight)?$")
_OLD_ATTENTION = re.compile(r"\.(processor\.)?to_(q|k|v|out)_lora\.(up|down)\.weight$")
_NEW_TAIL = re.compile(r"\.(?:lora|lora_linear_layer)\.(up|down)\.weight$")
_OLD_ALPHA = re.compile(r"\.(?:lora|lora_linear_layer|processor)\.alpha$")

_UNET_ROOTS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding")
_TEXT_ROOTS = ("text_model", "text_projection")
_SHORT_TEXT_ROOTS = ("encoder", "embeddings", "final_layer_norm")


def parse_key(key: str, layout: UNetLayout) -> ParsedKey | None:
    """The layer and tensor that ``key`` names; None when it is malformed or belongs to another kind of model."""
    if len(key) > _LONGEST:
        return None
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
            split = _split_tail(rest, form)
            return _finish(component, split[0], split[1], split[2], layout) if split else None
    return None


def _split_tail(rest: str, form: str) -> tuple[str, str, str] | None:
    """Module, tensor name and format of a dotted key."""
    if match := _PEFT_TAIL.search(rest):
        return rest[: match.start()], "lora_down.weight" if match.group(1) == "A" else "lora_up.weight", "peft"
    if match := _PEFT_MAGNITUDE.search(rest):
        return rest[: match.start()], "dora_scale", "peft"
    if match := _OLD_ATTENTION.search(rest):
        processor, which, direction = match.groups()
        if processor or rest.startswith(_UNET_ROOTS):
            layer = "to_out.0" if which == "out" else f"to_{which}"
        else:
            layer = "out_proj" if which == "out" else f"{which}_proj"  # a text encoder, which has CLIP's names
        return f"{rest[: match.start()]}.{layer}", f"lora_{direction}.weight", "diffusers-old"
    if match := _NEW_TAIL.search(rest):
        return rest[: match.start()], f"lora_{match.group(1)}.weight", "diffusers"
    if match := _OLD_ALPHA.search(rest):
        return rest[: match.start()], "alpha", "diffusers"
    for suffix in SUFFIXES:
        if rest.endswith(f".{suffix}") and suffix != "weight":
            return rest[: -len(suffix) - 1], suffix, "onetrainer" if form == "diffusers" else form
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
