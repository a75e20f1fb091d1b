"""Layer sizes of the released models, to recognise damaged LoRAs and those of other models."""

from __future__ import annotations

from ..algorithms.weight_change import delta_shape
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..weights import LoraModule

_WIDTH, _TEXT, _HIDDEN, _ADALN = 2048, 1024, 8192, 256  # of Anima: its tokens, text, feed-forward layers, AdaLN
_ANIMA_BLOCK = {
    **{f"{part}.{name}": (_WIDTH, _WIDTH) for part in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")},
    "attn2.to_k": (_WIDTH, _TEXT), "attn2.to_v": (_WIDTH, _TEXT), "ff.net.0.proj": (_HIDDEN, _WIDTH), "ff.net.2": (_WIDTH, _HIDDEN),
    **{f"norm{place}.linear_1": (_ADALN, _WIDTH) for place in (1, 2, 3)},
    **{f"norm{place}.linear_2": (3 * _WIDTH, _ADALN) for place in (1, 2, 3)},
}  # fmt: skip
_LUMINA2_WIDTH, _LUMINA2_HIDDEN, _LUMINA2_QKV = 2304, 9216, (24 + 8 + 8) * 96
_LUMINA2_BLOCK = {
    "attention.qkv": (_LUMINA2_QKV, _LUMINA2_WIDTH), "attention.out": (_LUMINA2_WIDTH, _LUMINA2_WIDTH),
    "feed_forward.w1": (_LUMINA2_HIDDEN, _LUMINA2_WIDTH), "feed_forward.w3": (_LUMINA2_HIDDEN, _LUMINA2_WIDTH),
    "feed_forward.w2": (_LUMINA2_WIDTH, _LUMINA2_HIDDEN), "adaLN_modulation.1": (4 * _LUMINA2_WIDTH, 1024),
}  # fmt: skip


def expected_size(family: str, name: str) -> tuple[int, int] | None:
    """(outputs, inputs) of a layer in a transformer block of the denoiser by its diffusers name; None for all other layers."""
    model, parts = FAMILY_LAYOUTS.get(family), name.split(".")
    if family == "anima":
        return _ANIMA_BLOCK.get(".".join(parts[2:])) if parts[0] == "transformer_blocks" else None
    if family == "lumina2":
        return _LUMINA2_BLOCK.get(".".join(parts[2:]))
    if model is None or "attentions" not in parts:
        return None
    channels = model.channels
    if parts[0] == "mid_block":
        width = channels[-1]
    elif not parts[1].isdecimal() or int(parts[1]) >= len(channels):
        return None
    else:
        width = channels[int(parts[1])] if parts[0] == "down_blocks" else channels[-1 - int(parts[1])]
    if name.endswith((".attn2.to_k", ".attn2.to_v")):
        return width, model.text_width
    if name.endswith(".ff.net.0.proj"):
        return 8 * width, width
    if name.endswith(".ff.net.2"):
        return width, 4 * width
    if name.endswith((".proj_in", ".proj_out", ".to_q", ".to_k", ".to_v", ".to_out.0")):
        return width, width
    return None


def misfits(family: str, modules: tuple[LoraModule, ...]) -> tuple[list[str], int]:
    """A line for each module whose size differs from the family's, and how many modules were compared."""
    lines, compared = [], 0
    for module in modules:
        size = expected_size(family, module.name) if module.component == "unet" else None
        if size is None or module.algorithm not in ("lora", "loha", "lokr", "full"):
            continue
        shape = delta_shape(module.algorithm, module.tensors)
        compared += 1
        if len(shape) < 2 or tuple(shape[:2]) != size:
            lines.append(f"{module.name} is {' x '.join(map(str, shape))} and should be {size[0]} x {size[1]}")
    return lines, compared
