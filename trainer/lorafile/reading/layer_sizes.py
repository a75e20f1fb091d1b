"""Layer sizes of the released UNets, to recognise damaged LoRAs and those of other models."""

from __future__ import annotations

from ..algorithms.weight_change import delta_shape
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..weights import LoraModule


def expected_size(family: str, name: str) -> tuple[int, int] | None:
    """(outputs, inputs) of a transformer layer of the UNet by its diffusers name; None for all other layers."""
    model, parts = FAMILY_LAYOUTS.get(family), name.split(".")
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
