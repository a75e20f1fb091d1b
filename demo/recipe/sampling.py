"""A small DDIM sampler for previews of the base while it trains: text to image and image to image."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from .base_model import LATENT_SCALE, SIZE


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Images from (n, 3, h, w) in -1..1."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(v) for v in values]


@torch.no_grad()
def sample_images(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    vae: AutoencoderKL,
    ids: Tensor,
    empty: Tensor,
    *,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
    size: int = SIZE,
    start: Tensor | None = None,
    strength: float = 1.0,
) -> list[Image.Image]:
    """Pictures for caption ids (n, 77), guided away from ``empty`` (77,).

    ``start`` are pixels (n, 3, size, size) in -1..1; with them the last ``strength`` of the schedule runs.
    """
    device = unet.device
    count = len(ids)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    noise = torch.randn(count, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(seed)).to(device)
    latents = noise
    if start is not None:
        timesteps = timesteps[steps - max(1, round(steps * strength)) :]
        clean = vae.encode(start.to(device)).latent_dist.mean * LATENT_SCALE
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    hidden = text(torch.cat([ids, empty.expand(count, -1)]).to(device)).last_hidden_state
    for t in timesteps:
        both = unet(torch.cat([latents, latents]), t, hidden).sample
        wanted, unwanted = both.chunk(2)
        latents = scheduler.step(unwanted + guidance * (wanted - unwanted), t, latents).prev_sample
    return to_images(vae.decode(latents / LATENT_SCALE).sample)
