"""UNet module names: diffusers' (``down_blocks.0.attentions.0``) and the original LDM ones (``input_blocks.1.1``).

The names follow from two facts about a UNet: how many ResNet layers a level has, and which levels have attention. So the mapping also holds
for UNets with other depths than Stable Diffusion's.

LDM numbers its blocks consecutively: ``input_blocks.0`` is the first convolution, then each level has ``layers`` blocks and one for the
downsampler. ``output_blocks`` has ``layers + 1`` blocks for each level, with the upsampler at the end of the level's last block.
"""

from __future__ import annotations

from dataclasses import dataclass

_LDM_ROOTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")

# inside a ResNet block: diffusers name, LDM name
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {ldm: name for name, ldm in _RESNET.items()}

# outside the blocks
_FIXED = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_FIXED_BACK = {ldm: name for name, ldm in _FIXED.items()}


@dataclass(frozen=True)
class UNetLayout:
    """What the module names of a UNet depend on.

    ``layers``: ResNet layers of each level (diffusers' ``layers_per_block``). ``attention``: whether each level has attention blocks, from
    the full resolution down.
    """

    layers: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)


def is_ldm_name(name: str) -> bool:
    """Whether a dotted UNet module name is an LDM name."""
    return name.split(".", 1)[0] in _LDM_ROOTS


def ldm_to_diffusers(name: str, layout: UNetLayout) -> str | None:
    """The diffusers name of a dotted LDM module name; None when no such module can exist."""
    if name in _FIXED_BACK:
        return _FIXED_BACK[name]
    parts = name.split(".")
    root, numbers = parts[0], []
    for part in parts[1:3]:
        if not part.isdecimal():
            break
        numbers.append(int(part))
    rest = ".".join(parts[1 + len(numbers) :])
    if root == "middle_block" and len(numbers) == 1:
        return _inside(f"mid_block.{'attentions' if numbers[0] % 2 else 'resnets'}.{numbers[0] // 2}", rest, numbers[0] % 2 == 1)
    if len(numbers) != 2:
        return None
    block, position = numbers
    if root == "input_blocks":
        level, layer = divmod(block - 1, layout.layers + 1)
        if block < 1 or level >= len(layout.attention):
            return None
        if layer == layout.layers:
            return f"down_blocks.{level}.downsamplers.0.conv" if (position, rest) == (0, "op") else None
        return _position(f"down_blocks.{level}", layer, position, rest)
    if root == "output_blocks":
        level, layer = divmod(block, layout.layers + 1)
        if level >= len(layout.attention):
            return None
        if rest == "conv" and position in (1, 2) and layer == layout.layers:
            return f"up_blocks.{level}.upsamplers.0.conv"
        return _position(f"up_blocks.{level}", layer, position, rest)
    return None


def diffusers_to_ldm(name: str, layout: UNetLayout) -> str | None:
    """The LDM name of a dotted diffusers module name; None when the layout has no such module."""
    if name in _FIXED:
        return _FIXED[name]
    parts = name.split(".")
    if parts[0] == "mid_block" and len(parts) > 3 and parts[2].isdecimal():
        kind, index, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        return _ldm_inside(f"middle_block.{index * 2 + (kind == 'attentions')}", kind, rest)
    if parts[0] not in ("down_blocks", "up_blocks") or len(parts) < 5 or not (parts[1].isdecimal() and parts[3].isdecimal()):
        return None
    level, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if level >= len(layout.attention):
        return None
    if parts[0] == "down_blocks":
        first = 1 + level * (layout.layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layout.layers}.0.op" if (index, rest) == (0, "conv") else None
        if index >= layout.layers:
            return None
        return _ldm_inside(f"input_blocks.{first + index}.{int(kind == 'attentions')}", kind, rest)
    first = level * (layout.layers + 1)
    if kind == "upsamplers":
        position = 2 if layout.attention[-1 - level] else 1
        return f"output_blocks.{first + layout.layers}.{position}.conv" if (index, rest) == (0, "conv") else None
    if index > layout.layers:
        return None
    return _ldm_inside(f"output_blocks.{first + index}.{int(kind == 'attentions')}", kind, rest)


def _position(block: str, layer: int, position: int, rest: str) -> str | None:
    if position == 0:
        return _inside(f"{block}.resnets.{layer}", rest, False)
    return _inside(f"{block}.attentions.{layer}", rest, True) if position == 1 else None


def _inside(prefix: str, rest: str, attention: bool) -> str | None:
    if attention:
        return f"{prefix}.{rest}" if rest else None
    return f"{prefix}.{_RESNET_BACK[rest]}" if rest in _RESNET_BACK else None


def _ldm_inside(prefix: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{prefix}.{rest}" if rest else None
    return f"{prefix}.{_RESNET[rest]}" if kind == "resnets" and rest in _RESNET else None
