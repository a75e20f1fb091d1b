"""Random drawings without a subject: outlined blobs, strokes, rings. They teach the autoencoder lines and
colours in general, so that it also reconstructs styles that the base model has never seen."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from .canvas import Canvas, Colour, Points, ellipse, mix, smooth_curve


def _colour(rng: random.Random) -> Colour:
    if rng.random() < 0.2:
        g = rng.randrange(256)
        return (g, g, g)
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _ink(rng: random.Random) -> Colour:
    return mix((rng.randrange(60), rng.randrange(50), rng.randrange(70)), _colour(rng), 0.1 if rng.random() < 0.7 else 0.8)


def _blob(rng: random.Random, cx: float, cy: float, r: float) -> Points:
    n = rng.randrange(4, 9)
    spiky = rng.random() < 0.35
    t = np.linspace(0, 2 * np.pi, n, endpoint=False) + rng.uniform(0, 6)
    radius = np.array([r * rng.uniform(0.35, 1.1) for _ in range(n)])
    points = np.stack([cx + radius * np.cos(t), cy + radius * np.sin(t)], axis=1)
    return points if spiky else smooth_curve(points, closed=True)


def random_drawing(seed: int, size: int = 128) -> Image.Image:
    """A drawing of blobs, rings and strokes; RGB, ``size`` pixels square, the same for the same seed."""
    rng = random.Random(f"shapes-{seed}")
    canvas = Canvas(size, _colour(rng), factor=3)
    for _ in range(rng.randrange(5, 14)):
        cx, cy, r = rng.random(), rng.random(), rng.uniform(0.06, 0.4)
        rgb = _colour(rng)
        kind = rng.random()
        width = rng.uniform(0.005, 0.02)
        if kind < 0.45:
            shape = _blob(rng, cx, cy, r)
            canvas.fill(shape, rgb)
            if rng.random() < 0.6:
                shift = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)]) * r
                canvas.fill_inside(canvas.mask(shape), [shape + shift], mix(rgb, _ink(rng), rng.uniform(0.1, 0.5)))
            if rng.random() < 0.7:
                canvas.outline(shape, _ink(rng), width)
        elif kind < 0.7:
            _rings(canvas, rng, cx, cy, rng.uniform(0.03, 0.12), rgb)
        else:
            ink = _ink(rng)
            for _ in range(rng.randrange(1, 5)):
                path = np.array([(cx + rng.uniform(-r, r), cy + rng.uniform(-r, r)) for _ in range(rng.randrange(3, 5))])
                canvas.stroke(smooth_curve(path), ink, rng.uniform(0.006, 0.03), (rng.random(), rng.random()))
    return canvas.image()


def _rings(canvas: Canvas, rng: random.Random, cx: float, cy: float, r: float, rgb: Colour) -> None:
    """Concentric ellipses with small bright dots."""
    squash = rng.uniform(0.6, 1.6)
    ink = _ink(rng)
    canvas.fill(ellipse(cx, cy, r * 1.15, r * squash * 1.15), (250, 250, 250) if rng.random() < 0.6 else _colour(rng))
    canvas.fill(ellipse(cx, cy, r * 0.8, r * squash * 0.85), mix(rgb, ink, 0.5))
    canvas.fill(ellipse(cx, cy + 0.2 * r, r * 0.7, r * squash * 0.6), rgb)
    canvas.fill(ellipse(cx, cy, r * 0.35, r * squash * 0.4), ink)
    canvas.dot(cx - 0.3 * r, cy - 0.35 * r, r * 0.25, (255, 255, 255))
    if rng.random() < 0.7:
        canvas.outline(ellipse(cx, cy, r * 1.15, r * squash * 1.15), ink, rng.uniform(0.006, 0.02))
