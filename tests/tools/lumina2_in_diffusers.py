"""Lumina 2's transformer as diffusers has it, with three layers in place of ``attention.qkv``: another program with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# original names of layers, and diffusers'; the first that matches counts
_NAMES = (
    ("final_layer.adaLN_modulation.1.", "norm_out.linear_1."),
    ("final_layer.linear.", "norm_out.linear_2."),
    ("cap_embedder.", "time_caption_embed.caption_embedder."),
    ("t_embedder.mlp.0.", "time_caption_embed.timestep_embedder.linear_1."),
    ("t_embedder.mlp.2.", "time_caption_embed.timestep_embedder.linear_2."),
    (".attention.out.", ".attn.to_out.0."),
    (".attention.q_norm.", ".attn.norm_q."),
    (".attention.k_norm.", ".attn.norm_k."),
    (".feed_forward.w", ".feed_forward.linear_"),
    (".adaLN_modulation.1.", ".norm1.linear."),
    (".attention_norm2.", ".norm2."),
)


def make_transformer(weights: Mapping[str, torch.Tensor]) -> Any:
    """``diffusers.Lumina2Transformer2DModel`` with these ``weights`` by their original names, of which ``norm_final`` is not used."""
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

    width, head = weights["x_embedder.weight"].shape[0], weights["layers.0.attention.q_norm.weight"].shape[0]
    transformer = Lumina2Transformer2DModel(
        in_channels=16, hidden_size=width, num_layers=_count(weights, "layers."), num_refiner_layers=_count(weights, "noise_refiner."),
        num_attention_heads=width // head, num_kv_heads=_key_rows(weights) // head, axes_dim_rope=(head // 3,) * 3,
        cap_feat_dim=weights["cap_embedder.0.weight"].shape[0],
    )  # fmt: skip
    transformer.load_state_dict(
        named_by_diffusers({name: value.detach() for name, value in weights.items() if name != "norm_final.weight"})
    )
    return transformer


def named_by_diffusers(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``weights`` by diffusers' names. Those of ``attention.qkv`` are views of its rows, through which gradients flow."""
    named: dict[str, torch.Tensor] = {}
    rows = _key_rows(weights)
    for name, value in weights.items():
        if ".attention.qkv." in name:
            for part, view in zip("qkv", value.split((len(value) - 2 * rows, rows, rows)), strict=True):
                named[name.replace(".attention.qkv.", f".attn.to_{part}.")] = view
        else:
            named[_renamed(name)] = value
    return named


def _renamed(name: str) -> str:
    if ".attention_norm1." in name:  # which diffusers puts together with the modulation
        return name.replace(".attention_norm1.", ".norm1." if name.startswith("context_refiner") else ".norm1.norm.")
    return next((name.replace(*pair) for pair in _NAMES if pair[0] in name), name)


def _key_rows(weights: Mapping[str, torch.Tensor]) -> int:
    fused = weights["layers.0.attention.qkv.weight"]
    return (fused.shape[0] - fused.shape[1]) // 2


def _count(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith(prefix)})
