"""Whether a model can be trained on images of a dataset's sizes."""

from __future__ import annotations

from ..core.errors import UserError
from ..dataset import Dataset
from ..families import Family


def require_sizes(family: Family, dataset: Dataset) -> None:
    """Raise UserError for an image whose sides are no multiples of what models of ``family`` need, or larger than they know."""
    latents = family.latents
    for item in dataset.items:
        size = f"{item.file} is {item.width}x{item.height} pixels"
        if item.width % latents.multiple or item.height % latents.multiple:
            raise UserError(
                f"{size}, but {family.title} needs sides that are multiples of {latents.multiple}.",
                f"Run Dataset Prep again with a resolution and a bucket step that are multiples of {latents.multiple}: 1024 and 64 are.",
                kind="dataset",
            )
        if latents.largest and max(item.width, item.height) > latents.largest:
            raise UserError(
                f"{size}, but {family.title} knows positions up to {latents.largest} pixels a side.",
                "Run Dataset Prep again with a smaller resolution, or with smaller buckets.",
                kind="dataset",
            )
