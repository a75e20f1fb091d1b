"""Sampling for validation images: classifier-free guidance with the scheduler of the family.

Not a diffusers pipeline, because the text encoder has left memory and conditionings come from the cache. A test compares the result with
the pipeline's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.diagnosis import is_out_of_memory
from ...core.work.progress import track
from ...families import EPSILON, Family, Framing, Prediction

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn


def sample_latents(
    unet: nn.Module,
    family: Family,
    condition: dict[str, torch.Tensor],
    negative: dict[str, torch.Tensor],
    *,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    prediction: Prediction = EPSILON,
    shift: float = 0.0,
    start: torch.Tensor | None = None,
    strength: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> torch.Tensor | None:
    """Latents in fp32, (1, channels, height, width), or None after ``stop`` returned True. With ``start``, the latents of an image,
    that image is changed; ``strength`` (above 0, up to 1) is the amount of noise: see ``noise_for``. ``shift`` is that of a rectified flow
    (0: the family's).

    Noise comes from ``generator`` on the CPU, so that the same seed gives the same image on every device.
    """
    import torch

    noise = torch.randn((1, *family.latents.shape(width, height)), generator=generator)
    scheduler = family.sampling_scheduler(prediction, karras=start is not None, shift=shift)
    if start is None:
        scheduler.set_timesteps(steps)
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = noise_for(scheduler, start.float().cpu(), noise, steps, strength)
    latents = latents.to(device)
    guided = guidance > 1
    conditions = [negative, condition] if guided else [condition]
    whole = Framing(original=(width, height), target=(width, height))
    inputs = family.denoiser_inputs(conditions, [whole] * len(conditions), device, dtype)
    with torch.no_grad():
        for timestep in track(scheduler.timesteps, "sampling steps", len(scheduler.timesteps)):
            if stop():
                return None
            scaled = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                predicted: Any = unet(scaled.to(dtype), timestep.to(device), **inputs, return_dict=False)[0]
            predicted = predicted.float()
            if guided:
                without, with_prompt = predicted.chunk(2)
                predicted = without + guidance * (with_prompt - without)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents  # type: ignore[no-any-return]


def noise_for(scheduler: Any, start: torch.Tensor, noise: torch.Tensor, steps: int, strength: float) -> torch.Tensor:
    """``start`` with ``noise`` of the level of ``strength``; sets ``scheduler`` to the ``steps`` from there.

    As ComfyUI's denoise: the noise levels are the last ``steps`` of ``steps / strength`` levels. diffusers' pipelines use the last ``steps
    * strength`` of ``steps`` levels, so that a low strength is a few coarse steps.
    """
    whole = max(steps, int(steps / strength))
    scheduler.set_timesteps(whole)
    scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[-steps:], scheduler.sigmas[-steps - 1 :]
    scheduler.num_inference_steps = steps
    scheduler.set_begin_index(0)
    noisy: torch.Tensor = scheduler.add_noise(start, noise, scheduler.timesteps[:1])
    return noisy


def decode_to_image(family: Family, vae: Any, latents: torch.Tensor) -> Image.Image:
    """The image of one latent (1, channels, h, w), decoded in the VAE's dtype; in tiles if it does not fit into memory as a whole."""
    import torch
    from PIL import Image

    latents = latents.to(vae.device, vae.dtype)
    pixels: torch.Tensor | None = None
    with torch.no_grad():
        try:
            pixels = family.decode_latents(vae, latents)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if pixels is None:  # outside of the except: there, the failed pass would still hold its memory
            if vae.device.type == "cuda":
                torch.cuda.empty_cache()
            vae.enable_tiling()
            pixels = family.decode_latents(vae, latents)
    array = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
