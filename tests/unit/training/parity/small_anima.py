"""A small model of Anima's architecture that is trained from nothing on drawn portraits, in minutes on one core.

Transformer, text encoder and adapter have Anima's layers at other widths. Text encoder and adapter stay random: their output tells captions
apart, which is all that the transformer needs. A linear autoencoder stands in for Qwen-Image's VAE, whose small version is untrained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from demo.drawing.portraits import BASE_STYLES, caption, random_portrait
from demo.drawing.render import render
from random_checkpoints import anima as random_anima
from trainer.families import BaseCheckpoint, open_checkpoint
from trainer.families.anima import tensor_layout
from trainer.families.anima.anima_family import FAMILY, Anima
from trainer.families.anima.text import padded
from trainer.families.flow_transformer import FLOWS
from trainer.objective.choose import make_noise_process

SIDE = 32  # pixels: four tokens of 16 x 16
CPU = torch.device("cpu")
SIZE = random_anima.Size(width=256, blocks=2, text=64, adapter_blocks=1, qwen_blocks=1, qwen_heads=2, vae=8)
PORTRAITS, STEPS, BATCH, RATE = 200, 600, 32, 2e-3
_BLOCK, _CHANNELS = 8, 16


class LinearAutoencoder(nn.Module):
    """Latents are the 16 largest principal components of blocks of 8 x 8 pixels, with unit variance over all of them."""

    use_tiling = False
    device, dtype = CPU, torch.float32

    def __init__(self, pixels: torch.Tensor) -> None:
        """``pixels`` (images, 3, height, width) in -1..1 are the images whose components are computed."""
        super().__init__()
        blocks = F.pixel_unshuffle(pixels, _BLOCK).movedim(1, -1).flatten(0, 2)
        self.mean = blocks.mean(0)
        _, _, directions = torch.linalg.svd(blocks - self.mean, full_matrices=False)
        self.directions = directions[:_CHANNELS]
        components = (blocks - self.mean) @ self.directions.T
        scale = components.std(0).sqrt()  # halfway to white, so that colours and light still weigh more than details
        self.scale = scale * (components / scale).std()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(images, 16, height / 8, width / 8)."""
        blocks = F.pixel_unshuffle(pixels, _BLOCK).movedim(1, -1)
        latents: torch.Tensor = (blocks - self.mean) @ self.directions.T / self.scale
        return latents.movedim(-1, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width)."""
        blocks = (latents.movedim(1, -1) * self.scale) @ self.directions + self.mean
        return F.pixel_shuffle(blocks.movedim(-1, 1), _BLOCK).clamp(-1, 1)


@dataclass(frozen=True)
class SmallAnima:
    """The trained transformer's file, with its text encoder and a VAE beside it; the autoencoder; the losses of the training."""

    path: Path
    vae: LinearAutoencoder
    losses: list[float]


def use_autoencoder(patch: pytest.MonkeyPatch, autoencoder: LinearAutoencoder) -> None:
    """Let the family Anima encode and decode with ``autoencoder`` in place of Qwen-Image's VAE."""

    def load_vae(family: Anima, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> LinearAutoencoder:
        return autoencoder

    def encode_images(family: Anima, vae: LinearAutoencoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = vae.encode(pixels)
        return latents, torch.zeros_like(latents)

    def decode_latents(family: Anima, vae: LinearAutoencoder, latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents)

    for replacement in (load_vae, encode_images, decode_latents):
        patch.setattr(Anima, replacement.__name__, replacement)


def portrait_pixels(number: int, style: str) -> torch.Tensor:
    """A drawn portrait (3, 32, 32) in -1..1."""
    image = np.asarray(render(random_portrait(number), style, SIDE), dtype=np.float32)
    return torch.from_numpy(image / 127.5 - 1).movedim(-1, 0)


def train_small_anima(folder: Path) -> SmallAnima:
    """Train the small model on ``PORTRAITS`` portraits, numbered from 0, in each of the demo's base styles."""
    random_anima.SIZES["learning"] = SIZE
    path = random_anima.make_anima(folder, "learning")
    checkpoint = open_checkpoint(str(path))
    images = [(number, style) for style in BASE_STYLES for number in range(PORTRAITS)]
    pixels = torch.stack([portrait_pixels(number, style) for number, style in images])
    vae = LinearAutoencoder(pixels)
    text = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU)
    rows = [row["embeds"] for row in text.encode([caption(random_portrait(number), style) for number, style in images])]
    denoiser: Any = FAMILY.load_denoiser(checkpoint, torch.float32).train()
    losses = _train(denoiser, vae.encode(pixels), rows)
    names = _names_in_file(path)
    trained = {names[name]: tensor.detach().contiguous() for name, tensor in denoiser.state_dict().items() if name in names}
    save_file({**load_file(path), **trained}, path)
    return SmallAnima(path, vae, losses)


def _train(denoiser: Any, latents: torch.Tensor, rows: list[torch.Tensor]) -> list[float]:
    """AdamW on the velocity at logit-normal noise levels, with a rate that falls to zero. Returns the losses."""
    generator = torch.Generator().manual_seed(0)
    denoiser.requires_grad_(True)
    nn.init.zeros_(denoiser.proj_out.weight)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * math.cos(math.pi / 2 * step / STEPS))
    process, losses = make_noise_process(FAMILY, FLOWS), []
    for _ in range(STEPS):
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:], generator=generator)
        levels = torch.sigmoid(torch.randn(BATCH, generator=generator))
        context = padded([rows[index] for index in chosen.tolist()], CPU, torch.float32)
        predicted = denoiser(process.add_noise(clean, noise, levels), levels, context)[0]
        loss = F.mse_loss(predicted, noise - clean)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _names_in_file(path: Path) -> dict[str, str]:
    """The names of the file's tensors by those that diffusers gives them: its converter renames numbered tensors."""
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

    keys = sorted(tensor_layout.denoiser_keys(open_checkpoint(str(path)).shapes))
    numbered = {key.removeprefix("net."): torch.tensor(index) for index, key in enumerate(keys)}
    renamed: dict[str, torch.Tensor] = convert_cosmos_transformer_checkpoint_to_diffusers(numbered)
    return {name: keys[int(number)] for name, number in renamed.items()}
