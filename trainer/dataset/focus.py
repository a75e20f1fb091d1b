"""Where the head of a drawn character is, and the crop that keeps it whole."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from .buckets import Size


@dataclass(frozen=True)
class Focus:
    """A head (hair included) as (left, top, right, bottom) in source pixels. ``confidence`` is from 0 to 1."""

    box: tuple[float, float, float, float]
    confidence: float
    method: str


def find_head(image: Image.Image, face_model: str = "") -> Focus | None:
    """The most prominent head, or None."""
    return None


def crop_offset(image: Size, resized: Size, target: Size, head: Focus | None) -> tuple[int, int]:
    """(left, top) of a ``target`` window in the picture scaled to ``resized``.

    With a head: the window that holds all of it, as near to the head's centre as the picture allows.
    Without: the middle across, a fifth of the spare height from the top, where portraits have their heads.
    """
    spare_x, spare_y = resized[0] - target[0], resized[1] - target[1]
    if head is None:
        return spare_x // 2, spare_y // 5
    scale_x, scale_y = resized[0] / image[0], resized[1] / image[1]
    left = _place(head.box[0] * scale_x, head.box[2] * scale_x, target[0], spare_x)
    top = _place(head.box[1] * scale_y, head.box[3] * scale_y, target[1], spare_y)
    return left, top


def _place(low: float, high: float, length: int, spare: int) -> int:
    start = (low + high - length) / 2
    return int(min(max(round(start), 0), spare))
