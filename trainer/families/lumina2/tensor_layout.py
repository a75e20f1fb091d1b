"""Where the tensors of Lumina 2 are in a file, and the sizes of its models as tensor shapes show them. Imports no library."""

from __future__ import annotations

from typing import Any

from ...core.messages import Setting
from ..checkpoints.separate_parts import PartKind
from ..checkpoints.tensor_names import Shapes, count_blocks, find_prefix

_DENOISERS = ("model.diffusion_model.", "diffusion_model.", "")
_TEXT_ENCODERS = ("text_encoders.gemma2_2b.transformer.model.", "model.", "")
_TOKENIZERS = ("text_encoders.spiece_model", "text_encoders.gemma2_2b.spiece_model", "spiece_model")  # ComfyUI writes the first
_VAES = ("vae.", "first_stage_model.", "")
_DENOISER_PARTS = ("x_embedder.", "t_embedder.", "cap_embedder.", "noise_refiner.", "context_refiner.", "layers.", "final_layer.")
_MARKS = ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight", "layers.0.adaLN_modulation.1.weight")
_PATCH = 2  # latent pixels along each side of a token
_TEXT_HEAD = 256  # width of Gemma 2's heads, which no tensor shows
LATENT_CHANNELS = 16


def denoiser_prefix(shapes: Shapes) -> str | None:
    """The prefix of the transformer's tensors; None in files of other models."""
    return find_prefix(shapes, _DENOISERS, *_MARKS)


def is_lumina2(shapes: Shapes) -> bool:
    """Whether the file has Lumina 2's transformer, and not one of those that were made from it: NewBie's also reads a pooled prompt, and
    Z-Image's has other blocks."""
    prefix = denoiser_prefix(shapes)
    return prefix is not None and not any(f"{prefix}{name}" in shapes for name in ("clip_text_pooled_proj.0.weight", "cap_pad_token"))


def text_prefix(shapes: Shapes) -> str | None:
    """The prefix of Gemma 2's tensors; None in files without it. Gemma 3 also normalises queries and keys."""
    found = find_prefix(shapes, _TEXT_ENCODERS, "embed_tokens.weight", "layers.0.pre_feedforward_layernorm.weight")
    return None if found is None or f"{found}layers.0.self_attn.q_norm.weight" in shapes else found


def tokenizer_key(shapes: Shapes) -> str | None:
    """The tensor with the bytes of the tokenizer's model; None in files without it."""
    return next((key for key in _TOKENIZERS if key in shapes), None)


def vae_prefix(shapes: Shapes) -> str | None:
    """The prefix of a VAE with the original names and 16 latent channels that are not mixed after the encoder; None in other files."""
    prefix = find_prefix(shapes, _VAES, "encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight")
    if prefix is None or f"{prefix}quant_conv.weight" in shapes:
        return None
    return prefix if shapes[f"{prefix}decoder.conv_in.weight"][1] == LATENT_CHANNELS else None


def denoiser_keys(shapes: Shapes) -> set[str]:
    """The transformer's keys. ``norm_final``, which some files have, is used by no program."""
    prefix = denoiser_prefix(shapes) or ""
    return {key for key in shapes if key.startswith(tuple(f"{prefix}{part}" for part in _DENOISER_PARTS))}


def denoiser_config(shapes: Shapes) -> dict[str, int]:
    """Arguments of :class:`.denoiser.Lumina2Transformer`. Raises KeyError where tensors are missing."""
    prefix = denoiser_prefix(shapes) or ""
    width, patch = shapes[f"{prefix}x_embedder.weight"]
    head = shapes[f"{prefix}layers.0.attention.k_norm.weight"][0]
    return {
        "channels": patch // _PATCH**2,
        "width": width,
        "heads": width // head,
        "kv_heads": (shapes[f"{prefix}layers.0.attention.qkv.weight"][0] - width) // (2 * head),
        "hidden": shapes[f"{prefix}layers.0.feed_forward.w1.weight"][0],
        "modulation": shapes[f"{prefix}t_embedder.mlp.2.weight"][0],
        "text_width": shapes[f"{prefix}cap_embedder.1.weight"][1],
        "num_layers": count_blocks(shapes, f"{prefix}layers."),
        "num_noise_refiners": count_blocks(shapes, f"{prefix}noise_refiner."),
        "num_context_refiners": count_blocks(shapes, f"{prefix}context_refiner."),
    }


def text_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Arguments of ``transformers.Gemma2Config`` for Gemma 2 without its last layer, whose input is what Lumina 2 reads. Raises KeyError
    where tensors are missing."""
    vocabulary, width = shapes[f"{prefix}embed_tokens.weight"]
    queries, keys = (shapes[f"{prefix}layers.0.self_attn.{part}_proj.weight"][0] for part in ("q", "k"))
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_blocks(shapes, f"{prefix}layers.") - 1,
        "num_attention_heads": queries // _TEXT_HEAD,
        "num_key_value_heads": keys // _TEXT_HEAD,
        "head_dim": _TEXT_HEAD,
        "query_pre_attn_scalar": _TEXT_HEAD,
        # not stated in the file: Gemma 2 2B's published configuration
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        # Gemma was trained with soft limits of its attention (50), which neither ComfyUI nor torch's fused attention has
        "attn_logit_softcapping": None,
        "use_cache": False,
    }


def text_encoder_kind(shapes: Shapes) -> PartKind:
    """How the text encoder of the model with these ``shapes`` is recognised: a Gemma 2 of the width that it reads."""
    width = shapes[f"{denoiser_prefix(shapes) or ''}{_MARKS[0]}"][1]

    def recognise(found: Shapes) -> bool:
        prefix = text_prefix(found)
        has_tokenizer = tokenizer_key(found) is not None
        return prefix is not None and has_tokenizer and denoiser_prefix(found) is None and found[f"{prefix}embed_tokens.weight"][1] == width

    return PartKind("Gemma 2 2B text encoder", Setting("base.text_encoder"), ("text_encoders", "clip"), recognise, "gemma_2_2b")


def vae_kind() -> PartKind:
    """How the VAE is recognised. Stable Diffusion 3's has the same shapes, so that ComfyUI's name of Flux' is preferred."""
    return PartKind("Flux VAE", Setting("base.vae"), ("vae",), lambda found: vae_prefix(found) is not None, "ae.safetensors")
