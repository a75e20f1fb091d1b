"""Stage 1 of the recipe: the autoencoder, on crops of portraits and random drawings.

The loss is L1 on pixels and on 8x8 means, which hold the colours, plus L1 on the differences between
neighbouring pixels at three scales, which keeps lines and eyes sharp without a pretrained perceptual network or a discriminator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .base_model import LATENT_SCALE, Widths, build_vae
from .data_parallel import agree, average_gradients, gather, rank, world
from .drawn_images import Pictures
from .initialise import full_resolution_blocks, start_vae
from .optimiser import optimisers
from .training_stage import Average, Budget, Log, learning_rate_factor, load_stage, restore_optimisers, save_stage, set_rates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeSettings:
    """``crop_share`` of the time goes to crops of a quarter of the side, the time until ``large_share`` to crops of
    half the side, the rest to whole pictures; ``small_share`` of it without most of the blocks at full resolution.
    ``batch`` counts the small crops; of the larger there are as many as have the same area."""

    minutes: float = 20.0
    max_steps: int = 20_000
    batch: int = 16
    lr: float = 2e-3
    adam_lr: float = 2e-3
    kl_weight: float = 3e-4
    small_share: float = 0.65
    crop_share: float = 0.5
    large_share: float = 0.8
    ema: float = 0.997
    save_minutes: float = 3.0
    seed: int = 0


def reconstruction_loss(picture: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels, of 8x8 means, and of neighbour differences at scales 1, 1/2 and 1/4; inputs (n, 3, h, w)."""
    error = picture - target
    loss = 2 * error.abs().mean() + 3 * functional.avg_pool2d(error, 8).abs().mean()
    for weight in (1.0, 0.7, 0.5):
        loss = loss + weight * ((error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean())
        error = functional.avg_pool2d(error, 2)
    return loss


def _augment(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror and turn; sometimes permute or invert the colour channels, (h, w, 3)."""
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.3:
        crop = crop[..., rng.permutation(3)]
    if rng.random() < 0.1:
        crop = 255 - crop
    if rng.random() < 0.15:
        crop = np.rot90(crop, int(rng.integers(1, 4)))
    return crop


def batch_of(sources: list[Pictures], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Random crops of ``size`` pixels from random sources: (count, 3, size, size) in -1..1."""
    crops = []
    for _ in range(count):
        source = sources[int(rng.integers(len(sources)))]
        picture = source[int(rng.integers(len(source)))]
        room = picture.shape[0] - size
        y, x = (int(rng.integers(room + 1)) for _ in range(2))
        crops.append(_augment(picture[y : y + size, x : x + size], rng))
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(crops)))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def train_vae(
    sources: list[Pictures],
    work: Path,
    widths: Widths,
    settings: VaeSettings,
    device: torch.device,
    start: Mapping[str, Tensor] | None = None,
) -> AutoencoderKL:
    """Train, or go on training, the autoencoder; returns it with its averaged weights. See :func:`fold_scale`.

    ``start`` are weights to begin with in place of untrained ones.
    """
    torch.manual_seed(settings.seed)
    vae = build_vae(widths)
    start_vae(vae)
    if start is not None:
        vae.load_state_dict(start)
    return _fit(vae.to(device), "vae", sources, work, settings, device)


def train_decoder(vae: AutoencoderKL, sources: list[Pictures], work: Path, settings: VaeSettings, device: torch.device) -> AutoencoderKL:
    """Train the decoder alone: latents stay what they are, so that it can happen after the UNet has learned them."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    return _fit(vae, "decoder", sources, work, settings, device)


def _fit(vae: AutoencoderKL, name: str, sources: list[Pictures], work: Path, settings: VaeSettings, device: torch.device) -> AutoencoderKL:
    """Train what requires gradients in ``vae``; checkpoint and losses are called ``name``."""
    vae.train()
    opts = optimisers([vae], settings.lr, settings.adam_lr)
    average = Average(vae, settings.ema)
    budget = Budget(settings.minutes, settings.max_steps)
    path = work / f"{name}.pt"
    if (state := load_stage(path)) is not None:
        vae.load_state_dict(state["weights"])
        average.weights = {k: v.to(device) for k, v in state["average"].items()}
        restore_optimisers(opts, state["optimisers"])
        budget = Budget(settings.minutes, settings.max_steps, state["seconds"], state["step"])
    log, last_save = Log(work / f"{name}.jsonl"), time.monotonic()
    torch.manual_seed(settings.seed + 7919 * rank() + budget.step)
    while (share := agree(budget.share)) < 1.0:
        set_rates(opts, learning_rate_factor(share))
        rng = np.random.default_rng((settings.seed, budget.step, rank()))
        full_resolution_blocks(vae, active=share > settings.small_share)
        batch, side = max(1, settings.batch // world()), sources[0].shape[1]
        part = 4 if share <= settings.crop_share else 2 if share <= settings.large_share else 1
        size, count = side // part, max(1, batch * part * part // 16)
        x = batch_of(sources, count, size, rng).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        rec = reconstruction_loss(decoded.float(), x)
        kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        (rec + settings.kl_weight * kl).backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        budget.step += 1
        average.update(vae, budget.step)
        log.add(reconstruction=rec.detach(), kl=kl.detach(), l1=(decoded.detach().float() - x).abs().mean())
        if rank():
            continue
        if budget.step % 20 == 0:
            logger.info("%s %s", name, log.write(budget, share=round(share, 3)))
        if time.monotonic() - last_save > 60 * settings.save_minutes or budget.over:
            save_stage(
                path,
                {
                    "weights": vae.state_dict(),
                    "average": average.weights,
                    "step": budget.step,
                    "optimisers": [opt.state_dict() for opt in opts],
                    "seconds": budget.spent,
                },
            )
            last_save = time.monotonic()
    full_resolution_blocks(vae, active=True)
    vae.load_state_dict(average.weights)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pictures: Pictures, device: torch.device) -> Tensor:
    """Latent means of pictures (n, h, w, 3) uint8, without any scaling: (n, 4, h/8, w/8) float32 on the CPU.

    Several processes share the work, so all of them must call it with the same pictures.
    """
    out = []
    batch = 256 if device.type == "cuda" else 32
    share = -(-len(pictures) // world())
    mine = range(rank() * share, min(len(pictures), (rank() + 1) * share))
    for start in range(mine.start, mine.stop, batch):
        x = torch.from_numpy(np.array(pictures[start : min(start + batch, mine.stop)])).to(device)
        x = x.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
        with torch.autocast(device.type, torch.bfloat16):
            out.append(vae.encode(x).latent_dist.mean.float().cpu())
    return gather(torch.cat(out))


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, latents: Tensor) -> None:
    """Rescale the latent space in place so that ``LATENT_SCALE * latent`` has unit variance and zero mean.

    ``latents`` are means from :func:`encode_pixels`, (n, 4, h, w). ``quant_conv`` gets the factor and the shift,
    ``post_quant_conv`` undoes both, and the posterior's log-variance moves along: decoding stays the same.
    """
    mean = latents.mean(dim=(0, 2, 3))
    factor = 1.0 / (LATENT_SCALE * latents.std(dim=(0, 2, 3)))
    quant, post = vae.quant_conv, vae.post_quant_conv
    device = quant.weight.device
    mean, factor = mean.to(device), factor.to(device)
    quant.weight[:4] *= factor[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * factor
    quant.bias[4:] += 2 * factor.log()
    post.bias += (post.weight[:, :, 0, 0] * mean[None]).sum(dim=1)
    post.weight /= factor[None, :, None, None]
