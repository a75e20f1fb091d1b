"""A parsed key of a LoRA file, and the tensor name at its end in every format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..algorithms.kinds import SUFFIXES


@dataclass(frozen=True)
class ParsedKey:
    """A parsed key. ``suffix`` is a LyCORIS tensor name, ``format`` the naming that the key is written in."""

    component: str
    module: str
    suffix: str
    format: str
    original: bool = False  # the key has the layer's original name (LDM's, Anima's), not diffusers'


# tensor names at the end of a dotted key that identify its format
_PEFT_TAIL = re.compile(r"\.lora_(A|B)(?:\.[A-Za-z0-9_]+)?\.weight$")
_PEFT_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.[A-Za-z0-9_]+)?(?:\.weight)?$")
_OLD_ATTENTION = re.compile(r"\.(processor\.)?to_(q|k|v|out)_lora\.(up|down)\.weight$")
_NEW_TAIL = re.compile(r"\.(?:lora|lora_linear_layer)\.(up|down)\.weight$")
_OLD_ALPHA = re.compile(r"\.(?:lora|lora_linear_layer|processor)\.alpha$")

_UNETS = ("down_blocks", "mid_block", "up_blocks")


def split_tail(rest: str, form: str) -> tuple[str, str, str] | None:
    """Module, tensor name and format of a dotted key without its prefix. ``form`` is the format that the prefix shows."""
    if match := _PEFT_TAIL.search(rest):
        return rest[: match.start()], "lora_down.weight" if match.group(1) == "A" else "lora_up.weight", "peft"
    if match := _PEFT_MAGNITUDE.search(rest):
        return rest[: match.start()], "dora_scale", "peft"
    if match := _OLD_ATTENTION.search(rest):
        processor, which, direction = match.groups()
        if processor or rest.startswith(_UNETS):
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
