"""Where the heads are, and the crop that keeps them whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .buckets import Size
from .head_finder import Head, Network, find_heads

# below this the finder's guess is worse than the upper centre (measured by benchmarks/prepare_head_finder.py)
MIN_CONFIDENCE = 0.6


@dataclass(frozen=True)
class Focus:
    """Heads as boxes (left, top, right, bottom) in source pixels, the most important first, and how sure the first is (0 to 1)."""

    boxes: tuple[tuple[float, float, float, float], ...]
    confidence: float
    method: str


def find_head(image: Image.Image, face_model: str = "", *, weights: Network | None = None) -> Focus | None:
    """The heads in an RGB picture, or None when nothing looks like one.

    ``face_model``: an ONNX face detector of the user (see ``face_model.py``) in place of the built-in finder.
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


def crop_offset(image: Size, resized: Size, target: Size, focus: Focus | None) -> tuple[int, int]:
    """(left, top) of a ``target`` window in the picture scaled to ``resized``.

    With heads: the window that holds the first and as many others as fit, as near to their middle as the picture allows.
    Without: the middle across, a fifth of the spare height from the top, where portraits have their heads.
    """
    spare_x, spare_y = resized[0] - target[0], resized[1] - target[1]
    if focus is None:
        return spare_x // 2, spare_y // 5
    x, y = resized[0] / image[0], resized[1] / image[1]
    left, top, right, bottom = _together([(b[0] * x, b[1] * y, b[2] * x, b[3] * y) for b in focus.boxes], target)
    return _place(left, right, target[0], spare_x), _place(top, bottom, target[1], spare_y)


def _importance(head: Head) -> float:
    left, top, right, bottom = head.box
    return head.confidence * (right - left) * (bottom - top)


def _together(boxes: Sequence[tuple[float, float, float, float]], target: Size) -> tuple[float, float, float, float]:
    union = boxes[0]
    for box in boxes[1:]:
        wider = (min(union[0], box[0]), min(union[1], box[1]), max(union[2], box[2]), max(union[3], box[3]))
        if wider[2] - wider[0] <= target[0] and wider[3] - wider[1] <= target[1]:
            union = wider
    return union


def _place(low: float, high: float, length: int, spare: int) -> int:
    start = (low + high - length) / 2
    return int(min(max(round(start), 0), spare))
