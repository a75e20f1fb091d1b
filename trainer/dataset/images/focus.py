"""The crop of an image: it keeps heads whole; without a confident head it keeps the top of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .buckets import Size
from .head_finder import Head, Network, find_heads

# With lower confidence, the top of the image is a better guess: on 79 drawings of artists, the finder found 12 heads at 0.6 (4 wrong), 3 at
# 0.8 and 2 at 0.9 (none wrong).
MIN_CONFIDENCE = 0.9
_PLAIN = 10  # 8-bit values by which pixels of an empty row or column may differ from each other, and from the next row
_MARGIN = 0.03  # of the window, above what is drawn, because light hair can look like background
_LONGEST = 128  # pixels of the longer side of the image in which empty rows are searched

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Focus:
    """Heads as boxes in source pixels, the most important first, and the confidence of the first (0 to 1)."""

    boxes: tuple[Box, ...]
    confidence: float
    method: str


def find_head(image: Image.Image, face_model: str = "", *, weights: Network | None = None) -> Focus | None:
    """The heads in an RGB image, None without any.

    ``face_model``: an ONNX face detector of the user (``face_model.py``), used instead of the built-in finder.
    """
    if face_model:
        from .face_model import detect

        heads, method = detect(image, Path(face_model)), Path(face_model).stem
    else:
        heads, method = find_heads(image, weights, threshold=MIN_CONFIDENCE), "drawn-head finder"
    if not heads:
        return None
    first, *others = sorted(heads, key=_importance, reverse=True)
    return Focus((first.box, *(head.box for head in others)), first.confidence, method)


def crop_offset(image: Size, resized: Size, target: Size, focus: Focus | None, content: Box | None = None) -> tuple[int, int]:
    """(left, top) of a ``target`` window in the image scaled to ``resized``.

    With heads: the window around the first one and as many others as fit, centred on them as far as the image allows.
    Without: horizontally the middle of ``content`` (``content_box``; None: the whole image), vertically its top, where heads are.
    """
    spare_x, spare_y = resized[0] - target[0], resized[1] - target[1]
    x, y = resized[0] / image[0], resized[1] / image[1]
    if focus is None:
        left, top, right, bottom = content or (0.0, 0.0, float(image[0]), float(image[1]))
        return _place(left * x, right * x, target[0], spare_x), _from_top(top * y, bottom * y, target[1], spare_y)
    left, top, right, bottom = _together([(b[0] * x, b[1] * y, b[2] * x, b[3] * y) for b in focus.boxes], target)
    return _place(left, right, target[0], spare_x), _place(top, bottom, target[1], spare_y)


def content_box(image: Image.Image) -> Box:
    """The part of an RGB image inside its empty border, that is, without plain or evenly shaded rows and columns."""
    scale = min(1.0, _LONGEST / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    top, bottom = _inside(pixels)
    left, right = _inside(pixels.transpose(1, 0, 2))
    x, y = image.width / small.width, image.height / small.height
    return left * x, top * y, right * x, bottom * y


def _inside(rows: npt.NDArray[np.int16]) -> tuple[int, int]:
    """(first row that is not empty, row after the last one) of (rows, columns, 3); the whole range when all are empty."""
    smooth = np.abs(np.diff(rows, axis=1)).max(axis=(1, 2), initial=0) <= _PLAIN
    # a row inside a drawing can be smooth, too, but then its neighbours differ
    like_next = np.abs(np.diff(rows, axis=0)).max(axis=(1, 2), initial=0) <= _PLAIN
    first = _leading(smooth, like_next)
    return (0, len(rows)) if first == len(rows) else (first, len(rows) - _leading(smooth[::-1], like_next[::-1]))


def _leading(smooth: npt.NDArray[np.bool_], like_next: npt.NDArray[np.bool_]) -> int:
    empty = smooth & np.concatenate([[True], like_next])
    return len(empty) if empty.all() else int(np.argmin(empty))


def _from_top(top: float, bottom: float, length: int, spare: int) -> int:
    """The start of a window on ``top`` to ``bottom``: at the top with a margin, or centred when the window is longer."""
    start = top - _MARGIN * length if bottom - top >= length else (top + bottom - length) / 2
    return int(min(max(round(start), 0), spare))


def _importance(head: Head) -> float:
    left, top, right, bottom = head.box
    return head.confidence * (right - left) * (bottom - top)


def _together(boxes: Sequence[Box], target: Size) -> Box:
    union = boxes[0]
    for box in boxes[1:]:
        wider = (min(union[0], box[0]), min(union[1], box[1]), max(union[2], box[2]), max(union[3], box[3]))
        if wider[2] - wider[0] <= target[0] and wider[3] - wider[1] <= target[1]:
            union = wider
    return union


def _place(low: float, high: float, length: int, spare: int) -> int:
    start = (low + high - length) / 2
    return int(min(max(round(start), 0), spare))
