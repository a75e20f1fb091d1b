"""Anti-aliased drawing: a supersampled Pillow image with smooth curves and tapered strokes.

Coordinates are in image widths: (0, 0) is the top left corner, (1, 1) the bottom right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Points = NDArray[np.float64]
"""(n, 2) array of x, y."""
Colour = tuple[int, int, int]


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Linear blend of two 8-bit colours: ``t`` 0 gives ``a``, 1 gives ``b``."""
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )


@lru_cache(maxsize=64)
def _basis(steps: int) -> NDArray[np.float64]:
    t = np.linspace(0.0, 1.0, steps, endpoint=False)
    t2, t3 = t * t, t * t * t
    return 0.5 * np.stack([-t3 + 2 * t2 - t, 3 * t3 - 5 * t2 + 2, -3 * t3 + 4 * t2 + t, t3 - t2], axis=1)


def smooth_curve(points: Points | Sequence[Sequence[float]], closed: bool = False, steps: int = 6) -> Points:
    """Catmull-Rom curve through control points (n, 2); returns about ``n * steps`` points."""
    p = np.asarray(points, dtype=np.float64)
    if closed:
        padded = np.concatenate([p[-1:], p, p[:2]])
        count = len(p)
    else:
        padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        count = len(p) - 1
    windows = np.stack([padded[i : i + count] for i in range(4)], axis=1)
    curve = np.einsum("sk,nkd->nsd", _basis(steps), windows).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 28) -> Points:
    """Points of an axis-aligned ellipse."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def ribbon(points: Points, width: float, taper: tuple[float, float] = (0.25, 0.25)) -> Points:
    """Polygon of a brush stroke: full ``width`` in the middle, ``taper`` of it at start and end."""
    d = np.gradient(points, axis=0)
    norm = np.maximum(np.hypot(d[:, 0], d[:, 1]), 1e-9)
    normal = np.stack([-d[:, 1], d[:, 0]], axis=1) / norm[:, None]
    t = np.linspace(0, 1, len(points))
    ends = taper[0] + (taper[1] - taper[0]) * t
    profile = ends + (1 - ends) * np.sin(np.pi * t)
    offset = normal * (0.5 * width * profile)[:, None]
    return np.concatenate([points + offset, (points - offset)[::-1]])


class Canvas:
    """A square drawing of ``size`` pixels, kept ``factor`` times larger until :meth:`image`."""

    def __init__(self, size: int, colour: Colour | int, factor: int | None = None, mode: str = "RGB") -> None:
        self.size = size
        self.factor = factor or (4 if size <= 128 else 3 if size <= 384 else 2)
        self.pixels = size * self.factor
        self.mode = mode
        self.drawing = Image.new(mode, (self.pixels, self.pixels), colour)
        self.draw = ImageDraw.Draw(self.drawing)

    def _xy(self, points: Points) -> list[float]:
        return (points * self.pixels - 0.5).ravel().tolist()

    def fill(self, points: Points, colour: Colour | int) -> None:
        """Fill a closed polygon."""
        self.draw.polygon(self._xy(points), fill=colour)

    def outline(self, points: Points, colour: Colour | int, width: float) -> None:
        """Draw a closed line of constant ``width`` (image widths)."""
        closed = np.concatenate([points, points[:2]])
        self.draw.line(self._xy(closed), fill=colour, width=max(1, round(width * self.pixels)), joint="curve")

    def line(self, points: Points, colour: Colour | int, width: float) -> None:
        """Draw an open line of constant ``width`` (image widths)."""
        self.draw.line(self._xy(points), fill=colour, width=max(1, round(width * self.pixels)), joint="curve")

    def stroke(self, points: Points, colour: Colour | int, width: float, taper: tuple[float, float] = (0.25, 0.25)) -> None:
        """Draw a brush stroke that is thinner at its ends."""
        self.fill(ribbon(points, width, taper), colour)

    def dot(self, x: float, y: float, r: float, colour: Colour | int) -> None:
        """Fill a circle."""
        s = self.pixels
        box = ((x - r) * s - 0.5, (y - r) * s - 0.5, (x + r) * s - 0.5, (y + r) * s - 0.5)
        self.draw.ellipse(box, fill=colour)

    def mask(self, *polygons: Points) -> Image.Image:
        """Single-channel image at drawing resolution: 255 inside any of the polygons."""
        inside = Image.new("L", (self.pixels, self.pixels), 0)
        draw = ImageDraw.Draw(inside)
        for points in polygons:
            draw.polygon(self._xy(points), fill=255)
        return inside

    def fill_inside(self, mask: Image.Image, shapes: Sequence[Points], colour: Colour | int) -> None:
        """Fill the parts of ``shapes`` that lie inside ``mask``."""
        self.paste_inside([mask], shapes, colour)

    def paste_inside(self, masks: Sequence[Image.Image], shapes: Sequence[Points], colour: Colour | int) -> None:
        """Fill the parts of ``shapes`` that lie inside all ``masks``; works on their bounding box only."""
        every = np.concatenate(list(shapes)) * self.pixels
        low = np.clip(np.floor(every.min(axis=0)) - 2, 0, self.pixels).astype(int)
        high = np.clip(np.ceil(every.max(axis=0)) + 2, 0, self.pixels).astype(int)
        if (high <= low).any():
            return
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        area = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
        draw = ImageDraw.Draw(area)
        for points in shapes:
            draw.polygon((points * self.pixels - 0.5 - low).ravel().tolist(), fill=255)
        for mask in masks:
            area = ImageChops.multiply(area, mask.crop(box))
        self.drawing.paste(colour, box[:2], area)

    def image(self) -> Image.Image:
        """The finished image, ``size`` pixels square."""
        return self.drawing.reduce(self.factor)
