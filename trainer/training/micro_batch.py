"""One forward pass's inputs, built from the caches: latents, noise, timesteps, conditionings, weights and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config.sections.objective import ObjectiveSection
from ..core.errors import UserError
from ..core.seeding import derive_seed, generator
from ..dataset import Dataset, Item
from ..dataset.loading.batch_order import Slot
from ..dataset.loading.caption_variation import caption_at
from ..families import Framing
from ..objective.noise import draw_noise, draw_timestep
from .cache import Cache

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MicroBatch:
    """Everything one forward pass needs, on the CPU: ``latents`` and ``noise`` (batch, 4, h, w) in fp32, ``timesteps``
    (batch,) int64, one conditioning (or, for a text encoder that is trained, one table of tokens) and one loss ``weight`` per image,
    ``masks`` (batch, 1, h, w) or None. ``mixed`` is the noise that is mixed in: ``noise`` itself unless the input is perturbed."""

    latents: torch.Tensor
    noise: torch.Tensor
    mixed: torch.Tensor
    timesteps: torch.Tensor
    conditions: list[dict[str, torch.Tensor]]
    weights: torch.Tensor
    masks: torch.Tensor | None
    framings: list[Framing]

    @property
    def size(self) -> int:
        """Images in the batch."""
        return int(self.latents.shape[0])

    def split(self, size: int) -> list[MicroBatch]:
        """The same images in batches of at most ``size``; 0: this batch alone."""
        if not size or size >= self.size:
            return [self]
        return [self._part(slice(start, start + size)) for start in range(0, self.size, size)]

    def pinned(self) -> MicroBatch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        tensors = {name: value.pin_memory() for name in _TENSORS if (value := getattr(self, name)) is not None}
        conditions = [{name: tensor.pin_memory() for name, tensor in condition.items()} for condition in self.conditions]
        return replace(self, **tensors, conditions=conditions)

    def _part(self, images: slice) -> MicroBatch:
        names = (*_TENSORS, "conditions", "framings")
        return replace(self, **{name: value[images] for name in names if (value := getattr(self, name)) is not None})


_TENSORS = ("latents", "noise", "mixed", "timesteps", "weights", "masks")


def build(
    slots: Sequence[Slot],
    dataset: Dataset,
    cache: Cache,
    settings: ObjectiveSection,
    *,
    seed: int,
    epoch: int,
    timesteps: int,
    tokenize: Callable[[str], dict[str, torch.Tensor]] | None = None,
) -> MicroBatch:
    """The batch of ``slots``: a latent drawn from the VAE's posterior, noise, one of ``timesteps`` and the caption's conditioning.

    With ``tokenize`` the conditionings are what it gives instead, to be encoded when the batch is trained on.
    """
    import torch

    latents, noises, mixed, steps, conditions, weights, framings = [], [], [], [], [], [], []
    for slot in slots:
        item, hints = dataset.items[slot.item], dataset.member(slot.item).training
        draw = generator(seed, "noise", epoch, slot.position)
        mean, std = cache.latent(item, _is_flipped(slot, dataset, seed, epoch))
        latents.append(mean + std * torch.randn(mean.shape, generator=draw))
        noise = draw_noise(tuple(mean.shape), settings, draw)
        noises.append(noise)
        steps.append(draw_timestep(settings, draw, timesteps))
        # input perturbation (Ning et al. 2023): the input is noised a little more than the target says
        perturbed = noise + settings.input_perturbation * torch.randn(noise.shape, generator=draw) if settings.input_perturbation else noise
        mixed.append(perturbed)
        caption = caption_at(item, hints, seed=seed, epoch=epoch, position=slot.position)
        conditions.append((tokenize or cache.prompt)(caption))
        weights.append(item.weight)
        framings.append(framing(item, _is_flipped(slot, dataset, seed, epoch)))
    chosen = masks(dataset, [(slot.item, _is_flipped(slot, dataset, seed, epoch)) for slot in slots])
    stacked = (torch.stack(latents), torch.stack(noises), torch.stack(mixed), torch.stack(steps))
    return MicroBatch(*stacked, conditions, torch.tensor(weights), chosen, framings)


def framing(item: Item, flipped: bool = False) -> Framing:
    """What a model of size conditioning is told about ``item``: mirrored, what was cut off at its right was cut off at the left."""
    top, left = item.crop_top_left
    if flipped and item.crop_right is not None:
        left = item.crop_right
    return Framing(item.original_size, (item.width, item.height), (top, left))


def masks(dataset: Dataset, chosen: Sequence[tuple[int, bool]]) -> torch.Tensor | None:
    """How much each latent pixel counts, (batch, 1, h, w) in 0..1, of the ``chosen`` pictures (index, whether mirrored).

    None when none of them has a mask.
    """
    items = [dataset.items[index] for index, _ in chosen]
    if not any(item.mask for item in items):
        return None
    import numpy as np
    import torch
    from PIL import Image

    from ..core.files.image_file import load_image

    found = []
    for (index, flipped), item in zip(chosen, items, strict=True):
        size = (item.width // 8, item.height // 8)
        if item.mask is None:
            found.append(torch.ones(1, size[1], size[0]))
            continue
        try:
            small = load_image(dataset.member(index).path / item.mask, "L").resize(size, Image.Resampling.BOX)
        except OSError as error:
            raise UserError(
                f"The mask {item.mask} of the dataset cannot be read ({error}).",
                "The dataset changed after it was prepared: run Dataset Prep again. The run then resumes from its last checkpoint.",
                kind="dataset",
            ) from error
        mask = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]
        found.append(mask.flip(-1) if flipped else mask)
    return torch.stack(found)


def _is_flipped(slot: Slot, dataset: Dataset, seed: int, epoch: int) -> bool:
    return bool(dataset.member(slot.item).training.flip and derive_seed(seed, "flip", epoch, slot.position) & 1)
