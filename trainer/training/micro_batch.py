"""The inputs of one forward pass, built from the caches: latents, noise, timesteps, conditionings, weights and masks."""

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
from ..objective.noise import draw_noise
from ..objective.noise_process import NoiseProcess
from .caching.cache import CacheReader

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass, on the CPU.

    ``latents`` and ``noise`` (batch, channels, h, w) in fp32; ``timesteps`` (batch,) as the noise process draws them; for each image a
    conditioning (token ids where the text encoder is trained, its output where only the adapter behind it is) and a loss weight; ``masks``
    (batch, 1, h, w) or None. ``input_noise`` is added to the latents: ``noise`` itself unless the input is perturbed.

    The mean loss of the images counts ``scale / accumulated * fraction`` in that of the step: see :class:`~.distributed.Share`, and
    ``fraction`` is the share of its micro-batch that a part of one has (``split``).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    input_noise: torch.Tensor
    timesteps: torch.Tensor
    conditions: list[dict[str, torch.Tensor]]
    weights: torch.Tensor
    masks: torch.Tensor | None
    framings: list[Framing]
    scale: float = 1.0
    accumulated: int = 1
    fraction: float = 1.0

    @property
    def size(self) -> int:
        """Images in the batch."""
        return int(self.latents.shape[0])

    @property
    def loss_weight(self) -> float:
        """How much the mean loss of the images counts in that of the step."""
        return self.scale / self.accumulated * self.fraction

    def weighted(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` times ``loss_weight``, factor by factor: a product of the factors could be rounded in another way."""
        return loss * self.scale / self.accumulated * self.fraction

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
        part = replace(self, **{name: value[images] for name in names if (value := getattr(self, name)) is not None})
        return replace(part, fraction=part.size / self.size)


_TENSORS = ("latents", "noise", "input_noise", "timesteps", "weights", "masks")


def build_micro_batch(
    slots: Sequence[Slot],
    dataset: Dataset,
    cache: CacheReader,
    settings: ObjectiveSection,
    process: NoiseProcess,
    *,
    seed: int,
    epoch: int,
    tokenize: Callable[[str], dict[str, torch.Tensor]] | None = None,
) -> MicroBatch:
    """The batch of ``slots``: a latent drawn from the VAE's posterior, noise, a timestep of ``process`` and the caption's conditioning.

    With ``tokenize``, the batch has token ids instead of conditionings, to be encoded in the training step.
    """
    import torch

    latents, noises, input_noises, steps, conditions, weights, framings = [], [], [], [], [], [], []
    for slot in slots:
        item, settings_of_member = dataset.items[slot.item], dataset.member(slot.item).training
        flipped = _is_flipped(slot, dataset, seed, epoch)
        draw = generator(seed, "noise", epoch, slot.position)
        mean, std = cache.latent(item, flipped)
        latents.append(mean + std * torch.randn(mean.shape, generator=draw))
        noise = draw_noise(tuple(mean.shape), settings, draw)
        noises.append(noise)
        steps.append(process.draw_timestep(settings, draw, item.width * item.height))
        # input perturbation (Ning et al. 2023): a little more noise is added to the input than the target contains
        perturbed = noise + settings.input_perturbation * torch.randn(noise.shape, generator=draw) if settings.input_perturbation else noise
        input_noises.append(perturbed)
        caption = caption_at(item, settings_of_member, seed=seed, epoch=epoch, position=slot.position)
        conditions.append((tokenize or cache.prompt)(caption))
        weights.append(item.weight)
        framings.append(framing(item, flipped))
    images = [(slot.item, _is_flipped(slot, dataset, seed, epoch)) for slot in slots]
    rows, columns = latents[0].shape[-2:]
    masks = load_masks(dataset, images, rows, columns)
    stacked = (torch.stack(latents), torch.stack(noises), torch.stack(input_noises), torch.stack(steps))
    return MicroBatch(*stacked, conditions, torch.tensor(weights), masks, framings)


def framing(item: Item, flipped: bool = False) -> Framing:
    """The size conditioning of ``item``. In a mirrored image, what was cropped on the right was cropped on the left."""
    top, left = item.crop_top_left
    if flipped and item.crop_right is not None:
        left = item.crop_right
    return Framing(item.original_size, (item.width, item.height), (top, left))


def load_masks(dataset: Dataset, images: Sequence[tuple[int, bool]], rows: int, columns: int) -> torch.Tensor | None:
    """How much each latent pixel of ``images`` (index, whether mirrored) counts, (batch, 1, rows, columns) in 0..1; None if none has a
    mask."""
    items = [dataset.items[index] for index, _ in images]
    if not any(item.mask for item in items):
        return None
    import numpy as np
    import torch
    from PIL import Image

    from ..core.files.image_file import load_image

    masks = []
    for (index, flipped), item in zip(images, items, strict=True):
        if item.mask is None:
            masks.append(torch.ones(1, rows, columns))
            continue
        try:
            small = load_image(dataset.member(index).path / item.mask, "L").resize((columns, rows), Image.Resampling.BOX)
        except OSError as error:
            raise UserError(
                f"The mask {item.mask} of the dataset cannot be read ({error}).",
                "The dataset changed after it was prepared: run Dataset Prep again. The run then resumes from its last checkpoint.",
                kind="dataset",
            ) from error
        mask = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]
        masks.append(mask.flip(-1) if flipped else mask)
    return torch.stack(masks)


def _is_flipped(slot: Slot, dataset: Dataset, seed: int, epoch: int) -> bool:
    return bool(dataset.member(slot.item).training.flip and derive_seed(seed, "flip", epoch, slot.position) & 1)
