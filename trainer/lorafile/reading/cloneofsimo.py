"""The first LoRA format for Stable Diffusion (cloneofsimo/lora): a sequence of tensors without layer names.

A ``.pt`` file is a list up, down, up, down, …; a ``.safetensors`` file has keys ``unet:0:up``, ``unet:0:down`` and metadata with the names
of the adapted classes. The order is that of the modules in diffusers at that time: UNet levels down, then up, then the middle; to_q, to_k,
to_v, to_out in each attention layer; k, v, q, out in CLIP's. The feed-forward projection (GEGLU) comes between the two attentions in older
files, after them in newer ones, or is absent; it is recognised by its eightfold width. The "extended" variant also adapts the ResNet blocks
(conv1, time_emb_proj, conv2, conv_shortcut), which follow the attention blocks of each UNet block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch

from ...core.errors import UserError
from ..naming.unet_names import UNetLayout
from ..weights import LoraModule

EMBEDDING_FLAG = "<embed>"
_CLIP_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_RESNET: dict[str, tuple[int, ...]] = {"conv1": (3, 3), "time_emb_proj": (), "conv2": (3, 3)}  # name: kernel
_COMPONENT = {"unet": "unet", "text_encoder": "te1"}
_Pair = tuple[torch.Tensor, torch.Tensor]  # up, down


def has_listed_keys(keys: Sequence[str]) -> bool:
    """Whether the keys are those of cloneofsimo's safetensors files."""
    return any(key.count(":") == 2 and key.split(":")[0] in _COMPONENT and key.endswith((":up", ":down")) for key in keys)


def read_list(tensors: Sequence[torch.Tensor], layout: UNetLayout) -> tuple[LoraModule, ...]:
    """The modules of a ``.pt`` list with their names. Raises UserError when the sequence fits no known order."""
    if len(tensors) % 2 or any(t.ndim not in (2, 4) for t in tensors):
        raise _no_order(f"{len(tensors)} tensors do not form pairs")
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    square = all(up.shape[0] == down.shape[1] == pairs[0][0].shape[0] for up, down in pairs)
    return _text(pairs) if square and pairs[0][0].shape[0] != 320 else _unet(pairs, layout)


def read_table(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], layout: UNetLayout
) -> tuple[tuple[LoraModule, ...], dict[str, torch.Tensor]]:
    """The modules of a cloneofsimo .safetensors file with their names, and the bundled embeddings."""
    pairs: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    extra: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(":")
        index, _, direction = rest.partition(":")
        if name in _COMPONENT and index.isdecimal() and len(index) < 7 and direction in ("up", "down"):
            pairs.setdefault(name, {}).setdefault(int(index), {})[direction] = tensor
        elif metadata.get(key) == EMBEDDING_FLAG:
            extra[key] = tensor
        else:
            raise _no_order(f"the key {key!r} is not of this format")
    modules: list[LoraModule] = []
    for name, table in pairs.items():
        if sorted(table) != list(range(len(table))) or any(len(pair) != 2 for pair in table.values()):
            raise _no_order(f"its {name} part has gaps")
        row = [(table[i]["up"], table[i]["down"]) for i in range(len(table))]
        modules += _text(row) if name == "text_encoder" else _unet(row, layout)
    return tuple(modules), extra


def _text(pairs: Sequence[_Pair]) -> tuple[LoraModule, ...]:
    if len(pairs) % 4:
        raise _no_order(f"{len(pairs)} text encoder layers are not a multiple of four, as each attention has")
    names = [f"text_model.encoder.layers.{i // 4}.self_attn.{_CLIP_ORDER[i % 4]}" for i in range(len(pairs))]
    return tuple(_module("te1", name, pair) for name, pair in zip(names, pairs, strict=True))


def _unet(pairs: Sequence[_Pair], layout: UNetLayout) -> tuple[LoraModule, ...]:
    blocks = _blocks(layout)
    flat = sum(up.ndim == 2 for up, _ in pairs)
    extended = flat != len(pairs)
    attentions, resnets = sum(count for _, count, _ in blocks), sum(count for _, _, count in blocks)
    per_attention, left = divmod(flat - resnets * extended, attentions)  # each ResNet block has one layer with a matrix
    if left or per_attention not in (8, 9):
        raise _no_order(f"{len(pairs)} layers are neither 8 nor 9 for each of {attentions} attention blocks")
    rest, modules = deque(pairs), list[LoraModule]()
    for block, attention_count, resnet_count in blocks:
        start = len(modules)
        for number in range(attention_count):
            modules += _attention(f"{block}.attentions.{number}", _take(rest, per_attention))
        for number in range(resnet_count if extended else 0):
            modules += _resnet(f"{block}.resnets.{number}", rest)
        widths = {module.tensors["lora_up.weight"].shape[0] for module in modules[start:] if "ff" not in module.name}
        if len(widths) > 1:
            raise _no_order(f"the layers in the position of {block} have different widths: {sorted(widths)}")
    if rest:
        raise _no_order(f"{len(rest)} layers are left over")
    return tuple(modules)


def _blocks(layout: UNetLayout) -> list[tuple[str, int, int]]:
    """UNet blocks in the file's order with their numbers of attention and ResNet blocks. Attention comes first within a block."""
    levels, layers = len(layout.attention), layout.layers
    blocks = [(f"down_blocks.{i}", layers * layout.attention[i], layers) for i in range(levels)]
    blocks += [(f"up_blocks.{i}", (layers + 1) * layout.attention[-1 - i], layers + 1) for i in range(levels)]
    return [*blocks, ("mid_block", 1, 2)]


def _attention(block: str, row: Sequence[_Pair]) -> list[LoraModule]:
    layers = [f"attn1.{name}" for name in _ATTENTION] + [f"attn2.{name}" for name in _ATTENTION]
    if len(row) == 9:
        wide = [index for index, (up, down) in enumerate(row) if up.shape[0] == 8 * down.shape[1]]
        if wide not in ([4], [8]):
            raise _no_order("its feed-forward projections are in unexpected positions")
        layers.insert(wide[0], "ff.net.0.proj")
    channels, modules = row[0][0].shape[0], []
    for layer, (up, down) in zip(layers, row, strict=True):
        inputs = down.shape[1]
        fits = inputs == channels or layer in ("attn2.to_k", "attn2.to_v")
        if up.shape[0] != (8 if "ff" in layer else 1) * channels or not fits or up.ndim != 2:
            raise _no_order(f"the layer in the position of {block} {layer} has the size {up.shape[0]} x {inputs}")
        modules.append(_module("unet", f"{block}.transformer_blocks.0.{layer}", (up, down)))
    return modules


def _resnet(block: str, rest: deque[_Pair]) -> list[LoraModule]:
    """conv1, time_emb_proj, conv2, and conv_shortcut when the width changes."""
    pairs = dict(zip(_RESNET, _take(rest, len(_RESNET)), strict=True))
    outputs, inputs = pairs["conv1"][0].shape[0], pairs["conv1"][1].shape[1]
    if inputs != outputs:
        pairs["conv_shortcut"] = _take(rest, 1)[0]
    kernels = {**_RESNET, "conv_shortcut": (1, 1)}
    for layer, (up, down) in pairs.items():
        into = {"conv2": outputs, "time_emb_proj": down.shape[1]}.get(layer, inputs)
        if tuple(down.shape[2:]) != kernels[layer] or (up.shape[0], down.shape[1]) != (outputs, into):
            size = " x ".join(str(number) for number in (up.shape[0], *down.shape[1:]))
            raise _no_order(f"the layer in the position of {block} {layer} has the size {size}")
    return [_module("unet", f"{block}.{layer}", pair) for layer, pair in pairs.items()]


def _take(rest: deque[_Pair], count: int) -> list[_Pair]:
    if len(rest) < count:
        raise _no_order(f"{count - len(rest)} layers are missing at its end")
    return [rest.popleft() for _ in range(count)]


def _module(component: str, name: str, pair: _Pair) -> LoraModule:
    return LoraModule(component, name, "lora", {"lora_up.weight": pair[0], "lora_down.weight": pair[1]})


def _no_order(why: str) -> UserError:
    return UserError(
        f"The file uses cloneofsimo's format without layer names, but {why}.",
        "It was probably made for another model than Stable Diffusion 1.x or 2.x.",
        kind="lora",
    )
