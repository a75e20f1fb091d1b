"""Lumina 2's transformer, NextDiT (Qin et al. 2025, arXiv 2503.21758). Imports torch and diffusers: import this module late.

Its modules have the original names, those of ComfyUI and of kohya's LoRA files. diffusers' transformer has three layers in place of
``attention.qkv``; a LoRA on the fused layer, whose down matrix queries, keys and values share, cannot be trained on them.

The original's time runs from noise (0) to image (1), and it predicts the velocity towards the image. This transformer takes the share of
noise and returns the velocity towards noise, as other flows do.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F

from .rotary import caption_positions, image_positions, rotate, rotations

_NORM_EPS = 1e-5
_HEAD_NORM_EPS = 1e-6
_TIME_WIDTH = 256  # of the sinusoidal embedding of the timestep
_PATCH = 2  # latent pixels along each side of a token


class RMSNorm(nn.RMSNorm):
    """torch's, with a result in the dtype of its input: autocast makes it fp32, and all that is added to it."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` normalised along their last dimension."""
        return super().forward(tokens).to(tokens.dtype)


class Attention(nn.Module):
    """Self-attention in which groups of queries share keys and values; queries and keys are normalised, then rotated."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head, self.heads, self.kv_heads = width // heads, heads, kv_heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head, eps=_HEAD_NORM_EPS)
        self.k_norm = RMSNorm(self.head, eps=_HEAD_NORM_EPS)

    def forward(self, tokens: torch.Tensor, rotation: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``tokens`` (batch, length, width); ``rotation``: see ``rotations``; ``mask`` (batch, 1, 1, length), True where a token is
        attended to."""
        heads = self.qkv(tokens).unflatten(-1, (-1, self.head))
        queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        queries, keys = rotate(self.q_norm(queries), rotation), rotate(self.k_norm(keys), rotation)
        shared = self.heads // self.kv_heads
        keys, values = (each.repeat_interleave(shared, dim=2) for each in (keys, values))
        queries, keys, values = (each.transpose(1, 2) for each in (queries, keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        result: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to the same."""
        result: torch.Tensor = self.w2(F.silu(self.w1(tokens)) * self.w3(tokens))
        return result


class Lumina2Block(nn.Module):
    """Attention and feed-forward layers, each between two norms. With ``modulation``, the timestep scales their inputs and gates their
    outputs; 0: it does not, as in the blocks for captions."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, modulation: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, kv_heads)
        self.feed_forward = FeedForward(width, hidden)
        self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2 = (RMSNorm(width, eps=_NORM_EPS) for _ in range(4))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(modulation, 4 * width)) if modulation else None

    def forward(
        self, tokens: torch.Tensor, rotation: torch.Tensor, mask: torch.Tensor | None, time: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``tokens`` (batch, length, width) and ``time`` (batch, modulation) to tokens of that shape."""
        result: torch.Tensor
        if self.adaLN_modulation is None or time is None:
            tokens = tokens + self.attention_norm2(self.attention(self.attention_norm1(tokens), rotation, mask))
            result = tokens + self.ffn_norm2(self.feed_forward(self.ffn_norm1(tokens)))
            return result
        attention_scale, attention_gate, hidden_scale, hidden_gate = self.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=-1)
        attended = self.attention(self.attention_norm1(tokens) * (1 + attention_scale), rotation, mask)
        tokens = tokens + attention_gate.tanh() * self.attention_norm2(attended)
        result = tokens + hidden_gate.tanh() * self.ffn_norm2(self.feed_forward(self.ffn_norm1(tokens) * (1 + hidden_scale)))
        return result


class TimestepEmbedder(nn.Module):
    """The embedding of a timestep in 0..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(batch,) in fp32 to (batch, width)."""
        half = _TIME_WIDTH // 2
        rates = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=timestep.device))
        angles = timestep[:, None] * rates
        result: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return result


class FinalLayer(nn.Module):
    """Features to patches of latents."""

    def __init__(self, width: int, modulation: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(modulation, width))

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to (batch, length, outputs)."""
        result: torch.Tensor = self.linear(self.norm_final(tokens) * (1 + self.adaLN_modulation(time).unsqueeze(1)))
        return result


class Lumina2Transformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The whole transformer; ``hidden`` is the width of the feed-forward layers, ``modulation`` that of the timestep's embedding."""

    _supports_gradient_checkpointing = True
    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        channels: int,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        modulation: int,
        text_width: int,
        num_layers: int,
        num_noise_refiners: int,
        num_context_refiners: int,
    ) -> None:
        super().__init__()

        def blocks(count: int, modulation: int) -> nn.ModuleList:
            return nn.ModuleList(Lumina2Block(width, heads, kv_heads, hidden, modulation) for _ in range(count))

        self.head = width // heads
        self.x_embedder = nn.Linear(channels * _PATCH**2, width)
        self.t_embedder = TimestepEmbedder(modulation)
        self.cap_embedder = nn.Sequential(RMSNorm(text_width, eps=_NORM_EPS), nn.Linear(text_width, width))
        self.context_refiner = blocks(num_context_refiners, 0)
        self.noise_refiner = blocks(num_noise_refiners, modulation)
        self.layers = blocks(num_layers, modulation)
        self.final_layer = FinalLayer(width, modulation, channels * _PATCH**2)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The velocity towards noise (batch, channels, height, width), in a tuple, of latents of that shape with even height and width.

        ``timestep`` is the share of noise in 0..1, (batch,) or without dimensions; ``encoder_hidden_states`` (batch, rows, text width) with
        ``encoder_attention_mask`` (batch, rows), True for the rows of each prompt, which come first.
        """
        batch, _, height, width = hidden_states.shape
        rows, columns = height // _PATCH, width // _PATCH
        dtype = hidden_states.dtype
        time = self.t_embedder(1 - timestep.float().expand(batch), dtype)
        lengths = encoder_attention_mask.sum(1)
        of_caption = rotations(caption_positions(batch, encoder_attention_mask.shape[1], hidden_states.device), self.head)
        of_image = rotations(image_positions(lengths, rows, columns), self.head)
        caption_mask = encoder_attention_mask[:, None, None]
        mask = F.pad(caption_mask, (0, rows * columns), value=True)

        caption = self.cap_embedder(encoder_hidden_states)
        for block in self.context_refiner:
            caption = self._run(block, caption, of_caption, caption_mask)
        image = self.x_embedder(_patches(hidden_states, rows, columns))
        for block in self.noise_refiner:
            image = self._run(block, image, of_image, None, time)
        tokens, of_both = torch.cat([caption, image], dim=1), torch.cat([of_caption, of_image], dim=1)
        for block in self.layers:
            tokens = self._run(block, tokens, of_both, mask, time)
        patches = self.final_layer(tokens[:, caption.shape[1] :], time)
        # (batch, rows x columns, patch height x patch width x channels) to an image
        image = patches.unflatten(1, (rows, columns)).unflatten(3, (_PATCH, _PATCH, -1)).permute(0, 5, 1, 3, 2, 4)
        return (-image.reshape(hidden_states.shape),)

    def _run(self, block: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
        result: torch.Tensor = self._gradient_checkpointing_func(block, *inputs) if checkpointed else block(*inputs)
        return result


def _patches(latents: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, rows x columns, patch height x patch width x channels)."""
    cut = latents.unflatten(3, (columns, _PATCH)).unflatten(2, (rows, _PATCH))  # (batch, channels, rows, patch, columns, patch)
    patches: torch.Tensor = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return patches
