"""An opened dataset and its images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.prepare_sections import TrainingHints
from ...core.files.reading import read_regular
from ..layout import LARGEST_MANIFEST, ROWS


@dataclass(frozen=True)
class Item:
    """One image of a dataset. Paths are relative to the dataset's folder, with forward slashes."""

    file: str
    sha256: str  # of the PNG file
    caption: str  # final, with the trigger word
    width: int
    height: int
    original_size: tuple[int, int]  # (width, height) of the source
    crop_top_left: tuple[int, int]  # (top, left) in the scaled source: SDXL's crop conditioning
    repeats: int = 1
    mask: str | None = None  # 8-bit grey PNG of the same size: the weight of each pixel in the loss
    is_regularisation: bool = False
    weight: float = 1.0  # of this image's loss
    crop_right: int | None = None  # pixels to the right of the crop, as in crop_top_left; None in older manifests


@dataclass(frozen=True)
class Row:
    """A row of the manifest: an item, its source and the steps that made it."""

    item: Item
    mask_sha256: str = ""
    bytes: int = 0
    source: str = ""
    source_sha256: str = ""
    source_format: str = ""
    caption_from: str = ""
    steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One line of ``manifest.jsonl``."""
        data = {name: getattr(self.item, name) for name in Item.__dataclass_fields__}
        return data | {name: getattr(self, name) for name in Row.__dataclass_fields__ if name != "item"}


@dataclass(frozen=True)
class Dataset:
    """An opened dataset. ``hash`` covers images, masks, captions, weights and training hints, and nothing else (``dataset_hash``)."""

    path: Path
    name: str
    hash: str
    trigger: str
    class_description: str
    resolution: int
    items: Sequence[Item] = field(repr=False)
    training: TrainingHints = field(default_factory=TrainingHints)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()  # warnings about how it was read

    @property
    def members(self) -> tuple[Dataset, ...]:
        """The datasets that are trained together: this one, unless ``combine_datasets`` made it."""
        return (self,)

    def member(self, index: int) -> Dataset:
        """The dataset that image ``index`` belongs to."""
        return self

    def image_path(self, item: Item) -> Path:
        """The path of the image."""
        return self.path / item.file

    def mask_path(self, item: Item) -> Path | None:
        """The path of the loss mask; None without one."""
        return self.path / item.mask if item.mask else None

    def buckets(self) -> dict[str, int]:
        """``"512x512"`` -> number of images, largest group first."""
        counts: dict[str, int] = {}
        for item in self.items:
            name = f"{item.width}x{item.height}"
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the manifest as plain data, with sources and steps."""
        for line in read_regular(self.path / ROWS, LARGEST_MANIFEST).splitlines():
            yield json.loads(line)
