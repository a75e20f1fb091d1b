"""Flux' VAE, which Lumina 2 uses: the autoencoder of Stable Diffusion with 16 channels and no convolutions around its latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import layout_errors
from ..checkpoints.tensor_names import Shapes
from ..checkpoints.weights_file import WeightsFile
from ..stable_diffusion import ldm_configs
from ..stable_diffusion.vae import load_ldm_vae
from . import tensor_layout

if TYPE_CHECKING:
    import torch

SCALING_FACTOR = 0.3611  # published with the VAE
SHIFT_FACTOR = 0.1159


def load_flux_vae(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``diffusers.AutoencoderKL``, frozen, on the CPU. ``title`` is the family's."""
    prefix = tensor_layout.vae_prefix(file.shapes) or ""
    read = file.tensors(lambda key: key.startswith((f"{prefix}encoder.", f"{prefix}decoder.")), dtype)
    tensors = {f"{ldm_configs.VAE}{key[len(prefix) :]}": value for key, value in read.items()}
    with layout_errors(file.path.name, "VAE", title):
        vae = load_ldm_vae(tensors, vae_config({key: tuple(value.shape) for key, value in tensors.items()}), dtype)
    return vae.eval().requires_grad_(False)


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The configuration of ``AutoencoderKL`` from shapes below ``first_stage_model.``."""
    channels = {f"{ldm_configs.VAE}post_quant_conv.weight": (tensor_layout.LATENT_CHANNELS,)}  # from which they are read
    own = {"shift_factor": SHIFT_FACTOR, "use_quant_conv": False, "use_post_quant_conv": False}
    return {**ldm_configs.vae_config({**shapes, **channels}, scaling_factor=SCALING_FACTOR), **own}


def encode_to_latents(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the posterior of ``pixels`` (batch, 3, height, width) in -1..1, shifted and scaled to about unit
    variance, each (batch, 16, height / 8, width / 8)."""
    posterior = vae.encode(pixels).latent_dist
    return (posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def decode_from_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The images (batch, 3, height, width) in about -1..1 of ``latents`` (batch, 16, height / 8, width / 8) at unit variance."""
    pixels: torch.Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return pixels
