"""diffusers' Cosmos block with fewer passes over memory, for a frozen denoiser. Imports torch and diffusers: import this module late.

Between its matrix products the block normalises, rotates, scales and adds, in some sixty operations that each read and write every number
(``operations.py`` has them in a few). Queries, keys and values of the same input are computed together.

Anima's prompts are padded with rows of zeros to 512, and the zeros count. But layers without bias make keys and values of zeros from them,
so nothing has to be computed for them: ``flash_attention.attend`` only counts them. A prompt of 30 tags has about 85 rows.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_cosmos import CosmosAdaLayerNormZero, CosmosAttnProcessor2_0, CosmosTransformerBlock
from torch import nn
from torch.nn import functional

from ..flash_attention import attend, operators_agree
from ..lora_layers import apply_together
from .operations import Rotation, modulated_norm, rotated_norm


def replace_blocks(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Change the classes of the blocks of ``denoiser`` in place, before LoRA goes in. Blocks with additions of other models stay."""
    blocks: list[Any] = [module for module in denoiser.modules() if type(module) is CosmosTransformerBlock]
    for block in blocks:
        if FastCosmosBlock.fits(block):
            block.__class__ = FastCosmosBlock
            for attention in (block.attn1, block.attn2):
                attention.set_processor(CosmosProcessor(dtype))


class FastCosmosBlock(CosmosTransformerBlock):  # type: ignore[misc]
    """Self-attention, cross-attention and feed-forward layer, each behind a modulated norm, each added through a gate."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether it is a block of Anima's transformer."""
        plain = not block.img_context and block.before_proj is None and block.after_proj is None
        norms = all(type(norm) is CosmosAdaLayerNormZero for norm in (block.norm1, block.norm2, block.norm3))
        return plain and norms and all(CosmosProcessor.fits(attention) for attention in (block.attn1, block.attn2))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        embedded_timestep: torch.Tensor,
        temb: torch.Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
        *others: Any,
        **named: Any,
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) to the same. ``encoder_hidden_states`` (batch, rows, width of the text),
        ``embedded_timestep`` (batch, width), ``temb`` (batch, 3 width)."""
        if embedded_timestep.ndim != 2 or any(each is not None for each in (*others, *named.values())):
            inputs = (hidden_states, encoder_hidden_states, embedded_timestep, temb, image_rotary_emb)
            result: torch.Tensor = super().forward(*inputs, *others, **named)
            return result
        activated = functional.silu(embedded_timestep)
        normed, gate = _normed(self.norm1, hidden_states, activated, temb)
        hidden_states = torch.addcmul(hidden_states, gate, self.attn1(normed, image_rotary_emb=image_rotary_emb))
        normed, gate = _normed(self.norm2, hidden_states, activated, temb)
        hidden_states = torch.addcmul(hidden_states, gate, self.attn2(normed, encoder_hidden_states=encoder_hidden_states))
        normed, gate = _normed(self.norm3, hidden_states, activated, temb)
        return torch.addcmul(hidden_states, gate, self.ff(normed))


class CosmosProcessor:
    """diffusers' processor interface for the attention layers of a Cosmos block. ``dtype``: that of the run."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._flash = operators_agree(dtype)

    @staticmethod
    def fits(attention: Any) -> bool:
        """Whether queries and keys have norms of their heads, and nothing has a bias."""
        if type(attention) is not Attention or type(attention.processor) is not CosmosAttnProcessor2_0:
            return False
        norms = (attention.norm_q, attention.norm_k)
        plain = all(type(norm) is RMSNorm and norm.weight is not None and norm.bias is None for norm in norms)
        return plain and all(layer.bias is None for layer in (attention.to_q, attention.to_k, attention.to_v))

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) attends to ``encoder_hidden_states`` (batch, rows, context), or to itself."""
        on_cpu, zeros = self._flash and hidden_states.device.type == "cpu", 0
        if encoder_hidden_states is None:
            projected = apply_together(hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        else:
            if on_cpu:
                zeros = zero_rows(encoder_hidden_states)
                encoder_hidden_states = encoder_hidden_states[:, : encoder_hidden_states.shape[1] - zeros]
            projected = [attn.to_q(hidden_states), *apply_together(encoder_hidden_states, (attn.to_k, attn.to_v))]
        query, key, value = (each.unflatten(-1, (attn.heads, -1)) for each in projected)
        query = rotated_norm(query, attn.norm_q.weight, image_rotary_emb, attn.norm_q.eps)
        key = rotated_norm(key, attn.norm_k.weight, image_rotary_emb, attn.norm_k.eps)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = attend(query, key, value, zero_keys=zeros) if on_cpu else functional.scaled_dot_product_attention(query, key, value)
        result: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(-2)))
        return result


def zero_rows(rows: torch.Tensor) -> int:
    """How many rows at the end of ``rows`` (batch, rows, width) are zeros in the whole batch; not all of them. Waits for the device."""
    filled = rows.any(-1).any(0).nonzero()
    return len(rows[0]) - (int(filled[-1]) + 1 if len(filled) else 1)


def _normed(norm: Any, x: torch.Tensor, activated: torch.Tensor, added: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The modulated norm of ``x``, and the gate, (batch, 1, width)."""
    modulation = norm.linear_2(norm.linear_1(activated))
    if added is not None:
        modulation = modulation + added
    shift, scale, gate = modulation.unsqueeze(1).chunk(3, -1)
    if modulation.requires_grad:  # adapters train it
        return norm.norm(x) * (1 + scale) + shift, gate
    return modulated_norm(x, scale, shift, norm.norm.eps), gate.to(x.dtype)
