"""Plain implementations of CLIP and OpenCLIP's text transformers, and configurations with defaults, to compare the families with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F


def plain_clip(weights: dict[str, torch.Tensor], ids: torch.Tensor, layers: int = 2) -> torch.Tensor:
    """CLIP's text transformer (Radford et al. 2021) on ``ids`` (batch, 77): pre-norm blocks, causal attention, quick GELU."""
    w = {name.split("text_model.")[1]: t.float() for name, t in weights.items() if name.startswith("cond_stage_model.")}
    width = w["final_layer_norm.weight"].shape[0]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    heads, length = width // 64, ids.shape[1]
    hidden_from = torch.full((length, length), -math.inf).triu(1)
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        y = norm(x, f"{name}.layer_norm1")
        q, k, v = (linear(y, f"{name}.self_attn.{part}_proj").unflatten(-1, (heads, 64)).transpose(1, 2) for part in "qkv")
        attention = (q @ k.transpose(-1, -2) / 8 + hidden_from).softmax(-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")
        y = linear(norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{name}.mlp.fc2")
    return norm(x, "final_layer_norm")


def open_clip(w: dict[str, torch.Tensor], ids: torch.Tensor, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """OpenCLIP's text transformer on ``ids`` (batch, 77): the hidden states before the last layer, and the projected, normed output of all
    ``layers`` at the end token. Pre-norm blocks, causal attention, GELU; written from the description of the architecture."""
    width = w["ln_final.weight"].shape[0]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    heads, causal = width // 64, torch.full((77, 77), -math.inf).triu(1)
    hidden = [x]
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        joined = norm(x, f"{block}.ln_1") @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, 64)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        attended = ((q @ k.transpose(-1, -2) / 8 + causal).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + attended @ w[f"{block}.attn.out_proj.weight"].T + w[f"{block}.attn.out_proj.bias"]
        inner = F.gelu(norm(x, f"{block}.ln_2") @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"])
        x = x + inner @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
        hidden.append(x)
    at_end = norm(x, "ln_final")[torch.arange(len(ids)), (ids == 49407).int().argmax(dim=1)]
    return hidden[-2], at_end @ w["text_projection"]


def below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, without it, in fp32."""
    return {name.removeprefix(prefix): tensor.float() for name, tensor in weights.items() if name.startswith(prefix)}


def full_config(cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """``config`` of a diffusers model class with its defaults filled in."""
    with torch.device("meta"):
        made = dict(cls.from_config({**config, "_class_name": cls.__name__}).config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items() if not key.startswith("_")}
