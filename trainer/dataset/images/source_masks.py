"""Loss masks beside their images, with the names that other trainers use; they are not trained as images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .decode import EXTENSIONS, Rejected, decode_image, open_image

# OneTrainer writes a-masklabel.png, and a-condlabel.png for the training of ControlNets; people and scripts use the others
_MASKS = ("-masklabel", "_masklabel", ".masklabel", "-mask", "_mask", ".mask")
_CONDITIONS = ("-condlabel", "_condlabel")
_ALWAYS = ("masklabel", "condlabel")  # unambiguous even without an image of that name
_FOLDERS = ("mask", "masks")
_SHAPE = 0.02  # by which the aspect ratios of a mask and its image may differ
_COLOUR = 12  # 8-bit values by which the channels of a grey mask may differ on average


@dataclass
class SourceMasks:
    """``of``: image -> mask. ``others``: mask files that are not used, with the reason. ``images``: all other images."""

    of: dict[Path, Path] = field(default_factory=dict)
    others: list[tuple[Path, str]] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)


def find_masks(files: Sequence[Path]) -> SourceMasks:
    """Separate masks from images: ``a_mask.png`` is the mask of ``a.*`` in its folder, ``masks/a.png`` of ``a.*`` in the folder above.

    Without such an image, ``fox_mask.png`` is an image, whose name says what is drawn.
    """
    candidates = [path for path in files if path.suffix.lower() in EXTENSIONS]
    by_stem: dict[tuple[Path, str], Path] = {}
    for path in candidates:
        by_stem.setdefault((path.parent, path.stem.casefold()), path)
    found = SourceMasks()
    for path in candidates:
        image, kind = _image_of(path, by_stem)
        if kind == "condition":
            found.others.append((path, "a conditioning image of another trainer: not trained"))
        elif image is not None and image not in found.of:
            found.of[image] = path
        elif image is not None:
            found.others.append((path, f"a second mask of {image.name}: {found.of[image].name} is used"))
        elif kind:
            found.others.append((path, "a mask without its image"))
        else:
            found.images.append(path)
    return found


def _image_of(path: Path, by_stem: dict[tuple[Path, str], Path]) -> tuple[Path | None, str]:
    """(image that ``path`` is the mask of, or None; "mask", "condition", or "" for an image)."""
    stem = path.stem.casefold()
    for suffix in (*_MASKS, *_CONDITIONS):
        if not stem.endswith(suffix):
            continue
        if suffix in _CONDITIONS:
            return None, "condition"
        image = by_stem.get((path.parent, stem.removesuffix(suffix)))
        if image is not None and image != path:
            return image, "mask"
        if suffix[1:] in _ALWAYS:
            return None, "mask"
    if path.parent.name.casefold() in _FOLDERS:
        image = by_stem.get((path.parent.parent, stem))
        return image, "mask" if image is not None else ""
    return None, ""


class UnusableMask(Exception):
    """A mask that cannot be used for its image. The message says why and begins with a verb."""


def load_mask(data: bytes, size: tuple[int, int], max_megapixels: float) -> Image.Image:
    """The mask in mode L and ``size``, which is that of its image: 255 is trained, 0 is not. Raises UnusableMask."""
    try:
        decoded = decode_image(open_image(data, max_megapixels))
    except Rejected as rejection:
        raise UnusableMask(f"cannot be read: {rejection}") from rejection
    mask = decoded.rgb
    if decoded.alpha is not None and len(set(mask.resize((64, 64), Image.Resampling.BOX).getdata())) == 1:
        mask = decoded.alpha.convert("RGB")  # the mask is in the alpha channel
    if abs(mask.width / mask.height / (size[0] / size[1]) - 1) > _SHAPE:
        raise UnusableMask(f"has another shape: {mask.width}x{mask.height}, its image {size[0]}x{size[1]}")
    small = np.asarray(mask.resize((64, 64), Image.Resampling.BOX), dtype=np.int16)
    if float((small.max(axis=2) - small.min(axis=2)).mean()) > _COLOUR:
        raise UnusableMask("is in colour, not black and white")
    grey = mask.convert("L")
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BOX)
