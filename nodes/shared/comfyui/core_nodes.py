"""ComfyUI's own nodes, called as functions, so that the same settings give the same pixels as a graph of them."""

from __future__ import annotations

import importlib
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..schema import field


def _core() -> Any:
    # inside ComfyUI the top-level module "nodes" is ComfyUI's; a plain import would look like ours to readers and tools
    return importlib.import_module("nodes")


def encode_text(clip: Any, text: str) -> Any:
    """CONDITIONING of ``text``, as CLIPTextEncode gives it."""
    return _core().CLIPTextEncode().encode(clip, text)[0]


def encode_image(vae: Any, pixels: Any) -> Any:
    """LATENT of an IMAGE ``(B, H, W, C)`` in 0..1, as VAEEncode gives it for each image, cropped to what the VAE can encode.

    VAEEncode reads a batch as the frames of one video if the VAE encodes videos, as that of Anima does.
    """
    if getattr(vae, "latent_dim", 2) == 3 and len(pixels) > 1:
        encoded = [encode_image(vae, pixels[index : index + 1])["samples"] for index in range(len(pixels))]
        return {"samples": torch.cat(encoded)}
    return _core().VAEEncode().encode(vae, pixels)[0]


def crop_to_latent(vae: Any, pixels: Any) -> Any:
    """The part of an IMAGE that the VAE encodes: cropped around the centre to multiples of the VAE's factor."""
    return vae.vae_encode_crop_pixels(pixels)


def empty_latent(width: int, height: int, batch: int) -> Any:
    """LATENT of zeros for text-to-image, as EmptyLatentImage gives it; sizes in pixels, multiples of 8."""
    return _core().EmptyLatentImage().generate(width, height, batch)[0]


def decode_latents(vae: Any, latent: Any) -> Any:
    """IMAGE of a LATENT, as VAEDecode gives it."""
    return _core().VAEDecode().decode(vae, latent)[0]


def apply_control(positive: Any, negative: Any, control_net: Any, image: Any, strength: float, vae: Any) -> tuple[Any, Any]:
    """Both conditionings with a ControlNet for all sampling steps, as ControlNetApplyAdvanced gives them."""
    applied = _core().ControlNetApplyAdvanced().apply_controlnet(positive, negative, control_net, image, strength, 0.0, 1.0, vae=vae)
    return applied[0], applied[1]


def upscale(model: Any, pixels: Any) -> Any:
    """IMAGE enlarged by an UPSCALE_MODEL in tiles, as ImageUpscaleWithModel gives it."""
    node = importlib.import_module("comfy_extras.nodes_upscale_model").ImageUpscaleWithModel
    return node.execute(model, pixels)[0]


def sample(
    model: Any,
    seed: int,
    steps: int,
    guidance: float,
    sampler: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent: Any,
    denoise: float,
) -> Any:
    """LATENT after sampling, as KSampler gives it."""
    return _core().common_ksampler(model, seed, steps, guidance, sampler, scheduler, positive, negative, latent, denoise=denoise)[0]


def sampler_fields() -> list[Any]:
    """The widgets for KSampler's sampler and scheduler."""
    return [
        field(
            io.Combo,
            "sampler_name",
            "The sampling method. For Anima: er_sde.",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default="dpmpp_2m",
        ),
        field(
            io.Combo,
            "scheduler",
            "How the noise levels are spread over the steps. For Anima: simple.",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default="karras",
        ),
    ]
