"""What the UNet is asked to predict: noise and timesteps drawn from counters, the target, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cache import Cache
from .captions import caption_at
from .counters import derive_seed, generator
from .dataset import Dataset
from .sampler import Slot

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MicroBatch:
    """Everything one forward pass needs, on the CPU: ``latents`` and ``noise`` (batch, 4, h, w) in fp32, ``timesteps``
    (batch,) int64, one conditioning and one loss ``weight`` per image, ``masks`` (batch, 1, h, w) or None."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    conditions: list[dict[str, torch.Tensor]]
    weights: torch.Tensor
    masks: torch.Tensor | None

    @property
    def size(self) -> int:
        """Images in the batch."""
        return int(self.latents.shape[0])


def build(slots: Sequence[Slot], dataset: Dataset, cache: Cache, *, seed: int, epoch: int, timesteps: int) -> MicroBatch:
    """The batch of ``slots``: a latent drawn from the VAE's posterior, noise, a uniform timestep and the caption's conditioning."""
    import torch

    latents, noises, steps, conditions, weights = [], [], [], [], []
    for slot in slots:
        item = dataset.items[slot.item]
        draw = generator(seed, "noise", epoch, slot.position)
        flipped = bool(dataset.training.flip and derive_seed(seed, "flip", epoch, slot.position) & 1)
        mean, std = cache.latent(item, flipped)
        latents.append(mean + std * torch.randn(mean.shape, generator=draw))
        noises.append(torch.randn(mean.shape, generator=draw))
        steps.append(torch.randint(0, timesteps, (), generator=draw))
        conditions.append(cache.prompt(caption_at(item, dataset.training, seed=seed, epoch=epoch, position=slot.position)))
        weights.append(item.weight)
    masks = _masks(slots, dataset, seed, epoch)
    return MicroBatch(torch.stack(latents), torch.stack(noises), torch.stack(steps), conditions, torch.tensor(weights), masks)


def loss(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error in fp32, averaged over each image, then over the batch with ``weights`` (batch,).

    With ``masks`` (batch, 1, h, w) in 0..1 the error outside is left out, and the mean is over what remains.
    """
    error = (predicted.float() - target.float()) ** 2
    if masks is None:
        per_image = error.mean(dim=(1, 2, 3))
    else:
        per_image = (error * masks).sum(dim=(1, 2, 3)) / (masks.sum(dim=(1, 2, 3)) * error.shape[1]).clamp_min(1e-6)
    return (per_image * weights).mean()


def target(noise_scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The noise itself, or the velocity for a v-prediction family (Salimans & Ho 2022, appendix D)."""
    if noise_scheduler.config.prediction_type == "v_prediction":
        velocity: torch.Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return noise


def _masks(slots: Sequence[Slot], dataset: Dataset, seed: int, epoch: int) -> torch.Tensor | None:
    items = [dataset.items[slot.item] for slot in slots]
    if not any(item.mask for item in items):
        return None
    import numpy as np
    import torch
    from PIL import Image

    masks = []
    for slot, item in zip(slots, items, strict=True):
        size = (item.width // 8, item.height // 8)
        if item.mask is None:
            masks.append(torch.ones(1, size[1], size[0]))
            continue
        with Image.open(dataset.path / item.mask) as image:
            small = image.convert("L").resize(size, Image.Resampling.BOX)
        mask = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]
        flipped = dataset.training.flip and derive_seed(seed, "flip", epoch, slot.position) & 1
        masks.append(mask.flip(-1) if flipped else mask)
    return torch.stack(masks)
