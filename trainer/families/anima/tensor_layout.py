"""Where Anima's models lie in files, and their sizes, read from the shapes of tensors.

Published files hold the transformer and the text adapter (names below ``net.``), Qwen3 0.6B (``model.``) and the VAE (no prefix). Files
that ComfyUI saved hold all of them below the prefixes of a checkpoint.
"""

from __future__ import annotations

from typing import Any

from ...core.messages import Setting
from ..checkpoints.separate_parts import PartKind
from ..checkpoints.tensor_names import Shapes, count_blocks, find_prefix

ADAPTER = "llm_adapter."
_DENOISER_PREFIXES = ("net.", "model.diffusion_model.", "model.", "")  # those that ComfyUI accepts
_TEXT_PREFIXES = ("cond_stage_model.qwen3_06b.transformer.model.", "model.", "")
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_DENOISER_PARTS = ("x_embedder.", "t_embedder.", "t_embedding_norm.", "blocks.", "final_layer.")
_ROPE_SCALE = (1.0, 4.0, 4.0)  # time, height, width; not stated in files, and diffusers' default is another
_LATENT_CHANNELS = 16


def denoiser_prefix(shapes: Shapes) -> str | None:
    """The prefix of the transformer's names; None where there is no Cosmos-Predict2 transformer."""
    return find_prefix(shapes, _DENOISER_PREFIXES, "blocks.0.adaln_modulation_cross_attn.1.weight")


def has_adapter(shapes: Shapes) -> bool:
    """Whether the text adapter, which plain Cosmos-Predict2 lacks, is there."""
    prefix = denoiser_prefix(shapes)
    return prefix is not None and f"{prefix}{ADAPTER}blocks.0.cross_attn.q_proj.weight" in shapes


def text_prefix(shapes: Shapes) -> str | None:
    """The prefix of Qwen3's names; None where there is no Qwen3. Its query norms tell it from Qwen2, and from Llama."""
    return find_prefix(shapes, _TEXT_PREFIXES, "layers.0.self_attn.q_norm.weight", "embed_tokens.weight")


def vae_prefix(shapes: Shapes) -> str | None:
    """The prefix of the names of Qwen-Image's VAE, which has Wan 2.1's architecture; None where there is no such VAE."""
    prefix = find_prefix(shapes, _VAE_PREFIXES, "encoder.downsamples.0.residual.0.gamma", "decoder.head.2.weight", "conv2.weight")
    if prefix is None or shapes[f"{prefix}conv2.weight"][:2] != (_LATENT_CHANNELS, _LATENT_CHANNELS):
        return None
    return prefix


def denoiser_keys(shapes: Shapes) -> set[str]:
    """The transformer's keys. What some files add is left out: positions (``pos_embedder``), counters, the adapter."""
    prefix = denoiser_prefix(shapes) or ""
    return {key for key in shapes if key.startswith(tuple(f"{prefix}{part}" for part in _DENOISER_PARTS))}


def denoiser_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of ``diffusers.CosmosTransformer3DModel``. Raises KeyError where tensors are missing."""
    prefix = denoiser_prefix(shapes) or ""
    width, patch = shapes[f"{prefix}x_embedder.proj.1.weight"]
    head = shapes[f"{prefix}blocks.0.self_attn.q_norm.weight"][0]
    return {
        "in_channels": patch // 4 - 1,  # patches of 2 x 2, and a padding mask beside the latents' channels
        "out_channels": shapes[f"{prefix}final_layer.linear.weight"][0] // 4,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": count_blocks(shapes, f"{prefix}blocks."),
        "mlp_ratio": shapes[f"{prefix}blocks.0.mlp.layer1.weight"][0] / width,
        "text_embed_dim": shapes[f"{prefix}blocks.0.cross_attn.k_proj.weight"][1],
        "adaln_lora_dim": shapes[f"{prefix}blocks.0.adaln_modulation_self_attn.1.weight"][0],
        "rope_scale": _ROPE_SCALE,
        "concat_padding_mask": True,
        "extra_pos_embed_type": None,
    }


def adapter_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of ``diffusers.AnimaTextConditioner``. Raises KeyError where tensors are missing."""
    prefix = f"{denoiser_prefix(shapes) or ''}{ADAPTER}"
    vocabulary, target = shapes[f"{prefix}embed.weight"]
    width = shapes[f"{prefix}blocks.0.self_attn.q_proj.weight"][1]
    return {
        "source_dim": shapes[f"{prefix}blocks.0.cross_attn.k_proj.weight"][1],
        "target_dim": target,
        "model_dim": width,
        "num_layers": count_blocks(shapes, f"{prefix}blocks."),
        "num_attention_heads": width // shapes[f"{prefix}blocks.0.self_attn.q_norm.weight"][0],
        "mlp_ratio": shapes[f"{prefix}blocks.0.mlp.0.weight"][0] / width,
        "target_vocab_size": vocabulary,
        "min_sequence_length": 0,  # rows of zeros are added when a batch is built
    }


def text_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Arguments of ``transformers.Qwen3Config``. Raises KeyError where tensors are missing."""
    vocabulary, width = shapes[f"{prefix}embed_tokens.weight"]
    head = shapes[f"{prefix}layers.0.self_attn.q_norm.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_blocks(shapes, f"{prefix}layers."),
        "num_attention_heads": shapes[f"{prefix}layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{prefix}layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        # not stated in the file: Qwen3 0.6B's published configuration
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 32_768,
        "use_cache": False,
    }


def text_encoder_kind(shapes: Shapes) -> PartKind:
    """How the text encoder of the model with these ``shapes`` is recognised: a Qwen3 of the width that its adapter reads."""
    width = adapter_config(shapes)["source_dim"]

    def recognise(found: Shapes) -> bool:
        prefix = text_prefix(found)
        return prefix is not None and denoiser_prefix(found) is None and found[f"{prefix}embed_tokens.weight"][1] == width

    folders = ("text_encoders", "clip")
    return PartKind("Qwen3 0.6B text encoder", Setting("base.text_encoder"), folders, recognise, "qwen_3_06b_base")


def vae_kind() -> PartKind:
    """How the VAE is recognised."""
    return PartKind("Qwen-Image VAE", Setting("base.vae"), ("vae",), lambda found: vae_prefix(found) is not None, "qwen_image")
