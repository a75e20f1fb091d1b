"""Encode the images of a dataset into latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.diagnosis import is_out_of_memory
from ...core.errors import Cancelled, UserError
from ...core.files.reading import read_regular
from ...dataset import Dataset, Item
from ...families import BaseCheckpoint, Family
from .cache import Cache

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Takes how many are done, and how many there are."""
_LARGEST_IMAGE = 1 << 30  # bytes


@dataclass(frozen=True)
class MissingLatent:
    """An image that has to be encoded; its file is relative to ``folder``."""

    folder: Path
    item: Item
    flipped: bool


def missing_latents(cache: Cache, dataset: Dataset) -> list[MissingLatent]:
    """The images whose latents are not in the cache."""
    needed: dict[Path, MissingLatent] = {}  # by cache file
    for index, item in enumerate(dataset.items):
        member = dataset.member(index)
        for flipped in (False, True) if member.training.flip else (False,):
            needed.setdefault(cache.latent_path(item, flipped), MissingLatent(member.path, item, flipped))
    return [latent for path, latent in needed.items() if not path.is_file()]


def fill_latents(
    cache: Cache,
    dataset: Dataset,
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    progress: Progress,
    stop: Callable[[], bool],
) -> int:
    """Encode the images whose latents are missing; returns their number. The VAE is loaded only if there are any.

    The VAE runs in fp32, since that of SD 1.x overflows in fp16. Raises UserError for an image that cannot be read or encoded, and
    Cancelled.
    """
    missing = missing_latents(cache, dataset)
    if not missing:
        return 0
    import torch

    vae: Any = family.load_vae(checkpoint, torch.float32).to(device)
    by_size: dict[tuple[int, int], list[MissingLatent]] = {}
    for latent in missing:
        by_size.setdefault((latent.item.width, latent.item.height), []).append(latent)
    done = 0
    for (width, height), of_size in by_size.items():
        batch_size = 1 if device.type == "cpu" else max(1, 512 * 512 // (width * height))  # more would need more memory than training does
        for start in range(0, len(of_size), batch_size):
            if stop():
                raise Cancelled
            batch = of_size[start : start + batch_size]
            images = [load_pixels(latent.folder, latent.item) for latent in batch]
            pixels = torch.stack([image.flip(-1) if latent.flipped else image for image, latent in zip(images, batch, strict=True)])
            for latent, mean, std in zip(batch, *encode_latents(family, vae, pixels.to(device)), strict=True):
                if not torch.isfinite(mean).all():
                    raise UserError(
                        f"The VAE of {checkpoint.name} encodes {latent.item.file} to numbers that are not finite.",
                        "Its VAE is damaged or overflows; use a checkpoint with a repaired (fp16-fix) VAE.",
                        kind="checkpoint",
                    )
                cache.write_latent(latent.item, latent.flipped, mean, std)
            done += len(batch)
            progress(done, len(missing))
    return len(missing)


def encode_latents(family: Family, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``Family.encode_images`` without gradients.

    A batch that does not fit into memory is encoded in halves, and an image that does not in tiles: what fits depends on the GPU and on
    what else runs there.
    """
    import torch

    try:
        with torch.no_grad():
            return family.encode_images(vae, pixels)
    except Exception as error:
        if not is_out_of_memory(error) or (len(pixels) == 1 and vae.use_tiling):
            raise
    if pixels.device.type == "cuda":  # outside of the except: there, the failed pass would still hold its memory
        torch.cuda.empty_cache()
    if len(pixels) == 1:
        vae.enable_tiling()
        return encode_latents(family, vae, pixels)
    halves = [encode_latents(family, vae, half) for half in pixels.tensor_split(2)]
    return torch.cat([mean for mean, _ in halves]), torch.cat([std for _, std in halves])


def load_pixels(folder: Path, item: Item) -> torch.Tensor:
    """The image of ``item``, whose file is relative to ``folder``, as fp32 (3, height, width) in -1..1. Raises UserError."""
    import numpy as np
    import torch

    from ...core.files.image_file import load_image

    try:
        data = read_regular(folder / item.file, _LARGEST_IMAGE)
        if hashlib.sha256(data).hexdigest() != item.sha256:  # else its latent would be cached under the name of another image
            raise OSError("it is not the file that its manifest names")
        array = np.asarray(load_image(data), dtype=np.float32)
    except OSError as error:
        raise UserError(
            f"The dataset image {item.file} cannot be read ({error}).",
            "The dataset changed after it was prepared: run Dataset Prep again.",
            kind="dataset",
        ) from error
    if array.shape[:2] != (item.height, item.width):
        raise UserError(
            f"The dataset image {item.file} is {array.shape[1]}x{array.shape[0]}, its manifest says {item.width}x{item.height}.",
            "The dataset changed after it was prepared: run Dataset Prep again.",
            kind="dataset",
        )
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1.0
