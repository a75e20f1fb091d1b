"""Find the heads of drawn characters: a small network scores gradients and colours in a window, at every place and size.

The idea is Dalal and Triggs' (histograms of oriented gradients in a sliding window, CVPR 2005), with a hidden layer instead of their
linear weights. ``benchmarks/prepare_head_finder.py`` trained and measured ``head_finder.npz``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.float32]

CELL = 4  # pixels
WINDOW = 12  # cells
BINS = 9  # of 180 degrees
CHANNELS = BINS + 3
# the side of the window is 3.4 times half the width of the face; the head with its hair in the window, as shares of its side
HEAD = (0.5 - 0.41, 0.5 - 0.47, 0.5 + 0.41, 0.5 + 0.42)
_SCALE = 2 ** (1 / 4)
_LONGEST = 224  # pixels of the longer side of the analysed image
_SMALLEST = 1 / 7  # of the shorter side: smaller heads are not searched
_WEIGHTS = Path(__file__).with_name("head_finder.npz")


@dataclass(frozen=True)
class Head:
    """A head's box (left, top, right, bottom) in pixels of the image; ``confidence`` from 0 to 1."""

    box: tuple[float, float, float, float]
    confidence: float


def cell_features(image: Image.Image) -> Array:
    """(rows, columns, CHANNELS) of an RGB image: normalised gradient histograms and three colour means for each cell."""
    rows, columns = image.height // CELL, image.width // CELL
    pixels = np.asarray(image, dtype=np.float32)[: rows * CELL, : columns * CELL] / 255
    dx = np.zeros_like(pixels)
    dy = np.zeros_like(pixels)
    dx[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    dy[1:-1] = pixels[2:] - pixels[:-2]
    strength = dx * dx + dy * dy
    channel = strength.argmax(axis=2)[..., None]  # the colour channel that changes most
    gx = np.take_along_axis(dx, channel, 2)[..., 0]
    gy = np.take_along_axis(dy, channel, 2)[..., 0]
    size = np.sqrt(gx * gx + gy * gy)
    angle = (np.arctan2(gy, gx) % np.pi) * (BINS / np.pi)
    low = np.floor(angle)
    part = angle - low
    first = low.astype(np.int64) % BINS
    places = np.arange(rows * CELL)[:, None] // CELL * columns + np.arange(columns * CELL)[None] // CELL
    count = rows * columns * BINS
    histogram = np.bincount((places * BINS + first).ravel(), (size * (1 - part)).ravel(), count)
    histogram += np.bincount((places * BINS + (first + 1) % BINS).ravel(), (size * part).ravel(), count)
    cells = histogram.reshape(rows, columns, BINS).astype(np.float32)
    energy = np.pad((cells**2).sum(2), 1, mode="edge")
    near = np.sum([energy[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
    cells /= np.sqrt(near)[..., None] + 0.15
    means = pixels.reshape(rows, CELL, columns, CELL, 3).mean(axis=(1, 3))
    red, green, blue = means[..., 0], means[..., 1], means[..., 2]
    colours = np.stack([means.mean(2) - 0.5, red - green, green - blue], axis=2)
    features: Array = np.concatenate([cells, colours], axis=2).astype(np.float32)
    return features


@dataclass(frozen=True)
class Network:
    """A hidden layer of rectified units: ``w1`` (WINDOW * WINDOW * CHANNELS, hidden), ``w2`` (hidden,)."""

    w1: Array
    b1: Array
    w2: Array
    b2: float

    def scores(self, features: Array) -> Array:
        """(rows - WINDOW + 1, columns - WINDOW + 1) log-odds that a head fills the window at each cell."""
        view: Any = np.lib.stride_tricks.sliding_window_view  # numpy 2.2 has no types for several axes
        windows = view(features, (WINDOW, WINDOW), axis=(0, 1))
        rows, columns = windows.shape[:2]
        flat = windows.transpose(0, 1, 3, 4, 2).reshape(rows * columns, -1)
        hidden = np.maximum(flat @ self.w1 + self.b1, 0)
        scores: Array = (hidden @ self.w2 + self.b2).reshape(rows, columns).astype(np.float32)
        return scores


@lru_cache(maxsize=1)
def network() -> Network:
    """The trained weights."""
    with np.load(_WEIGHTS, allow_pickle=False) as data:
        w1, b1, w2, b2 = (data[name].astype(np.float32) for name in ("w1", "b1", "w2", "b2"))
    return Network(w1, b1, w2, float(b2))


def pyramid(image: Image.Image) -> list[tuple[Image.Image, float]]:
    """The image at decreasing sizes, each with its scale relative to the original."""
    levels = []
    window = WINDOW * CELL
    # from the size at which the smallest head fills a window to the one at which the window covers the image
    scale = min(_LONGEST / max(image.size), window / (_SMALLEST * min(image.size)))
    while min(image.size) * scale >= window * 0.75:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        levels.append((image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR), scale))
        scale /= _SCALE
    return levels


def find_heads(image: Image.Image, weights: Network | None = None, *, threshold: float = 0.5) -> list[Head]:
    """Heads in an RGB image with a confidence of at least ``threshold``, most confident first."""
    weights = weights or network()
    pad = WINDOW * CELL // 4  # heads may touch the edge
    found: list[tuple[float, float, float, float]] = []  # score, x, y, side
    for level, scale in pyramid(image):
        framed = Image.fromarray(np.pad(np.asarray(level), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        features = cell_features(framed)
        if min(features.shape[:2]) < WINDOW:
            continue
        scores = weights.scores(features)
        for row, column in zip(*np.nonzero(scores > _log_odds(threshold)), strict=True):
            x, y = (column * CELL - pad) / scale, (row * CELL - pad) / scale
            found.append((float(scores[row, column]), x, y, WINDOW * CELL / scale))
    found.sort(reverse=True)
    kept: list[tuple[float, float, float, float]] = []
    for window in found:
        if all(_overlap(window, other) < 0.3 for other in kept):
            kept.append(window)
    return [Head(_head_box(x, y, side), 1 / (1 + math.exp(-score))) for score, x, y, side in kept]


def _head_box(x: float, y: float, side: float) -> tuple[float, float, float, float]:
    return x + HEAD[0] * side, y + HEAD[1] * side, x + HEAD[2] * side, y + HEAD[3] * side


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over the smaller of two square windows (score, x, y, side)."""
    width = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    height = min(a[2] + a[3], b[2] + b[3]) - max(a[2], b[2])
    return max(0.0, width) * max(0.0, height) / min(a[3], b[3]) ** 2


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
