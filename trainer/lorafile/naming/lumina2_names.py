"""Module names of Lumina 2: the original ones (``layers.0.attention.qkv``), which ComfyUI and kohya's trainer use as well.

diffusers has three layers in place of ``attention.qkv``; its names are not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MODULATION = "adaLN_modulation.1"
_IN_BLOCK = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_FIXED = (
    "x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1", "final_layer.linear", f"final_layer.{_MODULATION}",
)  # fmt: skip
_TEXT_LAYER = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)  # fmt: skip
_NUMBERED = re.compile(r"(layers|noise_refiner|context_refiner)([._])(0|[1-9]\d{0,3})\2(.+)")


def lumina2_module(component: str, name: str) -> str | None:
    """The module of one part of Lumina 2 that ``name`` stands for, with dots; None when that part has no such module.

    ``component`` is ``unet`` (the denoiser) or ``te1`` (Gemma 2). ``name`` may have underscores instead of dots, as in kohya's keys.
    """
    match = _NUMBERED.fullmatch(name)
    if component == "te1":
        rest = _spelled(match[4], _TEXT_LAYER) if match and match[1] == "layers" else None
        return f"layers.{match[3]}.{rest}" if match and rest else None
    if match is None:
        return _spelled(name, _FIXED)
    modulated = match[1] != "context_refiner"
    rest = _spelled(match[4], (*_IN_BLOCK, _MODULATION) if modulated else _IN_BLOCK)
    return f"{match[1]}.{match[3]}.{rest}" if rest else None


def is_in_block(module: str) -> bool:
    """Whether a module of the denoiser is in one of its blocks."""
    return _NUMBERED.fullmatch(module) is not None


def _spelled(name: str, known: Iterable[str]) -> str | None:
    return next((other for other in known if name in (other, other.replace(".", "_"))), None)
