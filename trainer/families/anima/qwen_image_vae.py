"""Qwen-Image's VAE for single images. Imports torch late.

It is a video VAE. Its cache of earlier frames takes memory and changes nothing for one frame, so encoder and decoder are called without
it, except for images in tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import layout_errors
from ..checkpoints.weights_file import WeightsFile
from . import tensor_layout

if TYPE_CHECKING:
    import torch


def load_qwen_image_vae(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``diffusers.AutoencoderKLQwenImage``, frozen, on the CPU."""
    import torch
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    prefix = tensor_layout.vae_prefix(file.shapes) or ""
    parts = tuple(f"{prefix}{part}" for part in ("encoder.", "decoder.", "conv1.", "conv2."))
    tensors = file.tensors(lambda key: key.startswith(parts), dtype)
    with layout_errors(file.path.name, "VAE", title):
        with torch.device("meta"):
            vae = AutoencoderKLQwenImage(base_dim=file.shapes[f"{prefix}encoder.conv1.weight"][0])
        named = convert_wan_vae_to_diffusers({key[len(prefix) :]: value for key, value in tensors.items()})
        vae.load_state_dict(named, assign=True)
    return vae.eval().requires_grad_(False)


def encode_to_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The mode of the posterior of ``pixels`` (batch, 3, height, width) in -1..1, at about unit variance (batch, 16, height/8, width/8)."""
    video = pixels.unsqueeze(2)
    moments = vae.encode(video).latent_dist.parameters if vae.use_tiling else vae.quant_conv(vae.encoder(video))
    mode = moments[:, : vae.config.z_dim]
    mean, std = _statistics(vae, mode)
    latents: torch.Tensor = ((mode - mean) / std)[:, :, 0]
    return latents


def decode_from_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The images (batch, 3, height, width) in -1..1 of ``latents`` (batch, 16, height/8, width/8) at unit variance."""
    video = latents.unsqueeze(2)
    mean, std = _statistics(vae, video)
    video = video * std + mean
    decoded = vae.decode(video).sample if vae.use_tiling else vae.decoder(vae.post_quant_conv(video)).clamp(-1, 1)
    pixels: torch.Tensor = decoded[:, :, 0]
    return pixels


def _statistics(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel, published with the VAE."""
    import torch

    both = torch.tensor([vae.config.latents_mean, vae.config.latents_std], dtype=like.dtype, device=like.device)
    mean, std = both.view(2, 1, -1, 1, 1, 1)
    return mean, std
