"""What a user should know about a dataset before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .dataset import Dataset, Row
from .report import plural
from .settings import PrepareSettings

if TYPE_CHECKING:
    from .captioning import Captioned


def warnings_for(dataset: Dataset, rows: Sequence[Row], captioned: Sequence[Captioned], settings: PrepareSettings) -> list[str]:
    """Sentences, most important first."""
    found: list[str] = []
    instances = [item for item in dataset.items if not item.is_regularisation]
    if not settings.trigger:
        found.append("There is no trigger word: the LoRA will change every picture. Choose a rare word such as 'mystyle1'.")
    if len(instances) < 5:
        found.append(f"Only {plural(len(instances), 'picture')}: a LoRA needs about 10 to 50 varied ones.")
    origins = Counter(caption.origin for caption, row in zip(captioned, rows, strict=True) if not row.item.is_regularisation)
    fallback = origins["instance prompt"]
    if settings.captions.source in ("sidecar", "sidecar+tags") and fallback:
        found.append(f"{plural(fallback, 'picture')} had no caption of their own and got the instance prompt.")
    elif settings.captions.source == "auto" and fallback and fallback < len(instances):
        found.append(f"{plural(fallback, 'picture')} of {len(instances)} had no caption and got the instance prompt.")
    if origins["edited by hand"]:
        found.append(
            f"{plural(origins['edited by hand'], 'caption')} edited by hand in the dataset's folder and kept; delete the .txt file to undo."
        )
    empty = sum(not item.caption for item in instances)
    if empty:
        found.append(f"{plural(empty, 'picture')} with an empty caption.")
    found += _sizes(rows, settings)
    return found


def _sizes(rows: Sequence[Row], settings: PrepareSettings) -> list[str]:
    found: list[str] = []
    sizes = [row.item.original_size for row in rows]
    aspects = [width / height for width, height in sizes]
    if settings.buckets is None and settings.crop != "none" and aspects and max(aspects) / min(aspects) > 1.5:
        cut = sum(max(a, 1 / a) > 1.25 for a in aspects)
        found.append(f"Mixed aspect ratios: {plural(cut, 'picture')} lose a fifth or more to the square crop. Consider buckets.")
    small = sum(min(size) * 2 < settings.resolution for size in sizes)
    if small and not (settings.buckets and settings.buckets.no_upscale):
        advice = "" if settings.upscaler else " An upscale model may do better."
        found.append(f"{plural(small, 'picture')} grew to more than twice their size.{advice}")
    return found
