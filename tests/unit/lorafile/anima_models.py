"""Anima's three parts on the meta device, built by diffusers and transformers: the reference for names and sizes of its layers."""

from __future__ import annotations

import functools

import torch
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import nn
from transformers import Qwen3Config, Qwen3Model


@functools.cache
def anima_parts(blocks: int = 2) -> dict[str, nn.Module]:
    """The denoiser with that many blocks, the adapter and Qwen3 with two layers, in full width and by their component."""
    with torch.device("meta"):
        denoiser = CosmosTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=16, attention_head_dim=128, num_layers=blocks, text_embed_dim=1024,
            adaln_lora_dim=256, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None, concat_padding_mask=True,
        )  # fmt: skip
        qwen = Qwen3Config(
            vocab_size=100, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128,
        )  # fmt: skip
        return {"unet": denoiser, "adapter": AnimaTextConditioner(), "te1": Qwen3Model(qwen)}


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every Linear layer by name."""
    return {name: (part.out_features, part.in_features) for name, part in model.named_modules() if isinstance(part, nn.Linear)}
