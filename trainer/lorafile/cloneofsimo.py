"""The first LoRA format for Stable Diffusion (cloneofsimo/lora): tensors in a row, without layer names.

``.pt``: a list up, down, up, down, …; ``.safetensors``: keys ``unet:0:up``, ``unet:0:down`` and metadata that names the adapted classes.
The order is that of the modules in the diffusers of that time: UNet levels down, then up, then the middle; in each attention layer
to_q, to_k, to_v, to_out; in CLIP's k, v, q, out. The feed-forward projection (GEGLU) stands between the two attentions in older and
after them in newer files, or is absent: its eight-fold width tells which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import UserError
from .unet_names import UNetLayout
from .weights import LoraModule

EMBEDDING_FLAG = "<embed>"
_CLIP_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_COMPONENT = {"unet": "unet", "text_encoder": "te1"}


def is_listed(keys: Sequence[str]) -> bool:
    """Whether the keys are those of cloneofsimo's safetensors."""
    return any(key.count(":") == 2 and key.split(":")[0] in _COMPONENT and key.endswith((":up", ":down")) for key in keys)


def read_list(tensors: Sequence[torch.Tensor], layout: UNetLayout) -> tuple[LoraModule, ...]:
    """Name the modules of a ``.pt`` list. Raises UserError when the row fits no known order."""
    if len(tensors) % 2 or any(t.ndim not in (2, 4) for t in tensors):
        raise _no_order(f"{len(tensors)} tensors do not pair up")
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    square = all(up.shape[0] == down.shape[1] == pairs[0][0].shape[0] for up, down in pairs)
    return _text(pairs) if square and pairs[0][0].shape[0] != 320 else _unet(pairs, layout)


def read_table(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], layout: UNetLayout
) -> tuple[tuple[LoraModule, ...], dict[str, torch.Tensor]]:
    """Name the modules of a cloneofsimo safetensors; the second value are bundled embeddings."""
    pairs: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    extra: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(":")
        index, _, direction = rest.partition(":")
        if name in _COMPONENT and index.isdecimal() and direction in ("up", "down"):
            pairs.setdefault(name, {}).setdefault(int(index), {})[direction] = tensor
        elif metadata.get(key) == EMBEDDING_FLAG:
            extra[key] = tensor
        else:
            raise _no_order(f"the key {key!r} is none of its kind")
    modules: list[LoraModule] = []
    for name, table in pairs.items():
        if sorted(table) != list(range(len(table))) or any(len(pair) != 2 for pair in table.values()):
            raise _no_order(f"its {name} part has gaps")
        row = [(table[i]["up"], table[i]["down"]) for i in range(len(table))]
        modules += _text(row) if name == "text_encoder" else _unet(row, layout)
    return tuple(modules), extra


def _text(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[LoraModule, ...]:
    if len(pairs) % 4:
        raise _no_order(f"{len(pairs)} text-encoder layers are not four for each attention")
    names = [f"text_model.encoder.layers.{i // 4}.self_attn.{_CLIP_ORDER[i % 4]}" for i in range(len(pairs))]
    return tuple(_module("te1", name, pair) for name, pair in zip(names, pairs, strict=True))


def _unet(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], layout: UNetLayout) -> tuple[LoraModule, ...]:
    if any(up.ndim == 4 for up, _ in pairs):
        raise _no_order("it adapts convolutions too (the extended variety), whose order is not read here")
    levels = len(layout.attention)
    blocks = [f"down_blocks.{i}.attentions.{j}" for i in range(levels) if layout.attention[i] for j in range(layout.layers)]
    blocks += [f"up_blocks.{i}.attentions.{j}" for i in range(levels) if layout.attention[-1 - i] for j in range(layout.layers + 1)]
    blocks.append("mid_block.attentions.0")
    per_block, left = divmod(len(pairs), len(blocks))
    if left or per_block not in (8, 9):
        raise _no_order(f"{len(pairs)} layers are neither 8 nor 9 for each of {len(blocks)} attention blocks")
    modules = []
    for number, block in enumerate(blocks):
        row = pairs[number * per_block : (number + 1) * per_block]
        layers = [f"attn1.{name}" for name in _ATTENTION] + [f"attn2.{name}" for name in _ATTENTION]
        if per_block == 9:
            wide = [index for index, (up, down) in enumerate(row) if up.shape[0] == 8 * down.shape[1]]
            if wide not in ([4], [8]):
                raise _no_order("its feed-forward projections are not where they should be")
            layers.insert(wide[0], "ff.net.0.proj")
        channels = row[0][0].shape[0]
        for layer, (up, down) in zip(layers, row, strict=True):
            inputs = down.shape[1]
            if up.shape[0] != (8 if "ff" in layer else 1) * channels or (inputs != channels and layer not in ("attn2.to_k", "attn2.to_v")):
                raise _no_order(f"the layer at the place of {block} {layer} has the size {up.shape[0]} x {inputs}")
            modules.append(_module("unet", f"{block}.transformer_blocks.0.{layer}", (up, down)))
    return tuple(modules)


def _module(component: str, name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> LoraModule:
    return LoraModule(component, name, "lora", {"lora_up.weight": pair[0], "lora_down.weight": pair[1]})


def _no_order(why: str) -> UserError:
    return UserError(
        f"The file has cloneofsimo's nameless layout, but {why}.",
        "It was probably made for another model than Stable Diffusion 1.x or 2.x.",
        kind="lora",
    )
