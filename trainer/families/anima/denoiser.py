"""Anima's transformer for images. Imports torch and diffusers: import this module late."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel


class ImageCosmosTransformer(CosmosTransformer3DModel):  # type: ignore[misc]
    """diffusers' Cosmos transformer, whose inputs are images instead of videos.

    The forward pass is written here because diffusers' needs torchvision to resize a padding mask, which is all zeros for whole images.
    """

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """The velocity (batch, channels, height, width), in a tuple, of latents of that shape with even height and width.

        ``timestep`` is the share of noise in 0..1, (batch,) or without dimensions; ``encoder_hidden_states`` (batch, tokens, width).
        """
        config: Any = self.config
        batch, _, height, width = hidden_states.shape
        _, patch_height, patch_width = config.patch_size
        mask = hidden_states.new_zeros(batch, 1, height, width)
        video = torch.cat([hidden_states, mask], dim=1).unsqueeze(2)
        rotary = self.rope(video)
        tokens = self.patch_embed(video).flatten(1, 3)
        modulation, embedded = self.time_embed(tokens, timestep.expand(batch))
        for block in self.transformer_blocks:
            inputs = (tokens, encoder_hidden_states, embedded, modulation, rotary)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens = block(*inputs)
        patches = self.proj_out(self.norm_out(tokens, embedded, modulation))
        # (batch, rows x columns, patch_height x patch_width x channels) to an image
        patches = patches.unflatten(2, (patch_height, patch_width, -1)).unflatten(1, (height // patch_height, width // patch_width))
        return (patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3),)
