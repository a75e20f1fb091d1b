"""How far an image is from the true anime rendering of the same portrait, and whether its colours are right.

**Distance.** Images of one portrait share their geometry, so they can be compared pixel by pixel, but a
generated line may lie a pixel beside the true one. Both parts are therefore taken from blurred maps at
several scales (standard deviations of 1, 2 and 4 pixels) of the images at 128 px; larger ones are made
smaller first, by averaging, so that figures of different sizes can be compared:

- colour: mean absolute difference of the blurred colours, which sees flat cel tones and wrong areas;
- line: mean absolute difference of the blurred strength of edges, which sees dark outlines and big eyes
  whether or not they lie on the very pixel.

Their sum is divided by the same sum for the source photo: 0 is the true anime rendering, 1 is as far from
it as the photo was.

**Style.** :func:`style_distance` compares how images are drawn, not what they show: it compares how often each
pair of brightness and strength of edge occurs. Flat tones and dark outlines count, a moved eye does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .drawing.canvas import Canvas
from .drawing.geometry import ANIME, build
from .drawing.parts import accessory_parts, clothes_parts, glasses_rims
from .drawing.portraits import Portrait

Map = NDArray[np.float32]
SCALES = (1.0, 2.0, 4.0)
"""Standard deviations of the blur in pixels of a 128 px image."""
SIDE = 128
"""Pixels of the side at which images are measured."""
STYLE_BLUR = 0.5
"""Standard deviation of the blur before the style's counts, in pixels of a 128 px image."""
STYLE_EDGES = np.geomspace(0.004, 0.25, 9)
"""Bounds between the classes of edge strength: differences of luminance (0..1) over a pixel of a 128 px image."""
LINE_WEIGHT = 2.0
"""Brings the line part, which is small because most pixels have no edge, to about the colour part's size."""


def _array(image: Image.Image) -> Map:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0


def _at_side(image: Image.Image) -> Map:
    """The image at 128 px, (128, 128, 3) in 0..1. Raises ``ValueError`` for one that is smaller or not square."""
    width, height = image.size
    if width != height or width < SIDE:
        raise ValueError(f"an image of {width} x {height} pixels cannot be measured: it must be square and have {SIDE} or more")
    return _array(image if width == SIDE else image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def _blurred(values: Map, sigma: float) -> Map:
    """Gaussian blur of (h, w) or (h, w, c) values in 0..1, separable, with mirrored borders."""
    radius = max(1, round(3 * sigma))
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * values.ndim
        pad[axis] = (radius, radius)
        padded = np.pad(values, pad, mode="symmetric")
        values = sum(weight * np.take(padded, np.arange(values.shape[axis]) + i, axis=axis) for i, weight in enumerate(kernel))
    return values


def _edges(image: Map) -> Map:
    """Strength of edges (h, w): the gradient's length of the luminance, by central differences."""
    grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    dy, dx = np.gradient(grey)
    strength: Map = np.hypot(dx, dy).astype(np.float32)
    return strength


def raw_distance(image: Image.Image, truth: Image.Image) -> float:
    """Colour and line distance of two images of one size, without normalisation; 0 only for equal images.

    Raises ``ValueError`` for images of different sizes, and for ones that are not square or smaller than 128 px.
    """
    if image.size != truth.size:
        raise ValueError(f"cannot compare images of {image.size} and {truth.size} pixels")
    a, b = _at_side(image), _at_side(truth)
    edges_a, edges_b = _edges(a), _edges(b)
    total = 0.0
    for s in SCALES:
        total += float(np.abs(_blurred(a, s) - _blurred(b, s)).mean())
        total += LINE_WEIGHT * float(np.abs(_blurred(edges_a, s) - _blurred(edges_b, s)).mean())
    return total / len(SCALES)


def distance(image: Image.Image, truth: Image.Image, source: Image.Image) -> float:
    """:func:`raw_distance` to the true rendering, in units of the source photo's own distance."""
    return raw_distance(image, truth) / raw_distance(source, truth)


def _tones(image: Image.Image) -> Map:
    """Histogram over brightness and edge strength: (8, 10), sums to 1."""
    smooth = _blurred(_at_side(image), STYLE_BLUR)
    grey = smooth @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    edges = _edges(smooth)
    rows = np.minimum((grey * 8).astype(int), 7)
    columns = np.searchsorted(STYLE_EDGES, edges.ravel()).reshape(edges.shape)
    counts = np.zeros((8, len(STYLE_EDGES) + 1), dtype=np.float32)
    np.add.at(counts, (rows, columns), 1.0)
    shares: Map = (counts / counts.sum()).astype(np.float32)
    return shares


def style_distance(images: Sequence[Image.Image], truths: Sequence[Image.Image]) -> float:
    """How differently two sets of images are drawn, 0..1: half the sum of the differences of their mean frequencies of
    pairs of brightness and strength of edge (total variation). It grows with how few images there are, so that only values
    for sets of the same size can be compared.

    Raises ``ValueError`` for an empty set.
    """
    if not images or not truths:
        raise ValueError("a style can only be compared with at least one image on each side")
    a, b = (np.mean([_tones(image) for image in group], axis=0) for group in (images, truths))
    return float(np.abs(a - b).sum() / 2)


@dataclass(frozen=True)
class Regions:
    """Where hair, skin and background lie in a portrait, as boolean masks (size, size) that keep off the edges."""

    hair: NDArray[np.bool_]
    skin: NDArray[np.bool_]
    background: NDArray[np.bool_]


def regions(portrait: Portrait, size: int = 128) -> Regions:
    """The regions whose colours are attributes, from the geometry and not from any image."""
    g = build(portrait, ANIME)
    canvas = Canvas(size, 1, factor=1, mode="L")
    for points in g.hair_back:
        canvas.fill(points, 2)
    canvas.fill(g.body, 0)
    for points in (g.neck, *g.ears):
        canvas.fill(points, 0)
    for points, _ in clothes_parts(portrait, (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)):
        canvas.fill(points, 0)
    canvas.fill(g.face, 3)
    for side in (-1, 1):  # eyes and brows are no skin
        u, p = side * g.proportions.eye_u, g.proportions
        box = [(u - 0.42, p.brow_v - 0.12), (u + 0.42, p.brow_v - 0.12), (u + 0.42, p.eye_v + 0.42), (u - 0.42, p.eye_v + 0.42)]
        canvas.fill(g.frame(box), 0)
    m = [(-0.28, g.proportions.mouth_v - 0.12), (0.28, g.proportions.mouth_v - 0.12), (0.28, 1.06), (-0.28, 1.06)]
    canvas.fill(g.frame(m), 0)
    for points in (*g.locks, g.hair_front):
        canvas.fill(points, 2)
    for rim in glasses_rims(portrait, g, 0.46):
        canvas.fill(rim, 0)
    for points, _ in accessory_parts(portrait, g):
        canvas.fill(points, 0)
    labels = np.asarray(canvas.drawing)
    width = 2 * max(1, round(size / 128)) + 1

    def inner(value: int) -> NDArray[np.bool_]:
        mask = Image.fromarray(((labels == value) * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(width))
        return np.asarray(mask) > 127

    return Regions(hair=inner(2), skin=inner(3), background=inner(1))


def colour_errors(image: Image.Image, truth: Image.Image, portrait: Portrait) -> dict[str, float]:
    """Difference of the mean colours of hair, skin and background, averaged over red, green and blue, in 0..1.

    A region that an accessory or the fringe leaves fewer than 20 pixels is left out.
    """
    a, b = _array(image), _array(truth)
    found = regions(portrait, image.size[0])
    out = {}
    for name in ("hair", "skin", "background"):
        mask = getattr(found, name)
        if mask.sum() >= 20:
            out[name] = float(np.abs(a[mask].mean(axis=0) - b[mask].mean(axis=0)).mean())
    return out
