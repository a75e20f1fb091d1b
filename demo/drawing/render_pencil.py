"""Pencil style: paper, graphite lines drawn twice, a light wash of colour, hatching in the shadows."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from .canvas import Canvas, Colour, Points, ellipse, mix, ribbon, smooth_curve
from .geometry import REALISTIC, Geometry, build
from .parts import accessory_parts, background_parts, clothes_parts, glasses_bridge, glasses_rims
from .portraits import Portrait

PAPER: Colour = (246, 243, 235)
GRAPHITE: Colour = (84, 82, 86)


@lru_cache(maxsize=8)
def _hatch(pixels: int, pitch: float) -> Image.Image:
    """Diagonal lines as a single-channel mask of ``pixels`` square; ``pitch`` in image widths."""
    y, x = np.mgrid[0:pixels, 0:pixels]
    wave = np.sin((x + y) * (2 * np.pi / (pitch * pixels * np.sqrt(2))))
    return Image.fromarray((np.clip(wave * 2 - 0.4, 0, 1) * 255).astype(np.uint8))


class _Pencil:
    def __init__(self, canvas: Canvas, seed: int) -> None:
        self.canvas = canvas
        self.rng = random.Random(f"pencil-{seed}")

    def trace(self, points: Points, width: float = 0.008, closed: bool = True) -> None:
        """Draw a line twice with a small shift, as a hand does."""
        line = np.concatenate([points, points[:2]]) if closed else points
        for strength in (0.0, 0.4):
            shift = np.array([self.rng.uniform(-0.004, 0.004), self.rng.uniform(-0.004, 0.004)])
            self.canvas.line(line + shift, mix(GRAPHITE, PAPER, strength), width)

    def wash(self, points: Points, colour: Colour, strength: float = 0.55) -> None:
        self.canvas.fill(points, mix(PAPER, colour, strength))

    def hatch(self, shapes: list[Points], inside: list[Points], colour: Colour) -> None:
        masks = [_hatch(self.canvas.pixels, 0.028)]
        masks.append(self.canvas.mask(*inside))
        self.canvas.paste_inside(masks, shapes, colour)


def render(portrait: Portrait, size: int = 128) -> Image.Image:
    """Draw a portrait with coloured pencils: RGB, ``size`` pixels square."""
    g = build(portrait, REALISTIC)
    canvas = Canvas(size, mix(PAPER, portrait.background_rgb, 0.5))
    pencil = _Pencil(canvas, portrait.seed)
    second = mix(PAPER, portrait.background_rgb, 0.2)
    if portrait.background == "gradient":
        for i in range(8):
            y = i / 8
            canvas.fill(np.array([(0, y), (1.01, y), (1.01, 1.01), (0, 1.01)]), mix(canvas_colour(portrait), second, i / 7))
    for points, colour in background_parts(portrait, second):
        canvas.fill(points, colour)
    hair, skin, main = portrait.hair_rgb, portrait.skin_rgb, portrait.clothes_rgb
    lx = portrait.light
    for points in g.hair_back:
        pencil.wash(points, hair, 0.75)
        pencil.hatch([points], [points], mix(hair, GRAPHITE, 0.4))
        pencil.trace(points)
    for x, y in g.tie_points:
        canvas.dot(x, y, 0.026, mix(PAPER, (220, 70, 90), 0.7))
    pencil.wash(g.body, main, 0.65)
    pencil.hatch([g.body], [np.add(g.body, (0.5 * lx, 0.1))], mix(main, GRAPHITE, 0.5))
    pencil.trace(g.body)
    pencil.wash(g.neck, skin, 0.75)
    pencil.hatch([g.neck], [np.add(g.face, (0, 0.06))], mix(skin, GRAPHITE, 0.6))
    light_skin = mix(PAPER, skin, 0.75)
    for points, colour in clothes_parts(portrait, light_skin, main, mix(main, (0, 0, 0), 0.15), mix(main, PAPER, 0.3)):
        canvas.fill(points, colour if colour == light_skin else mix(PAPER, colour, 0.65))
        pencil.trace(points, 0.006)
    for points in [*g.ears, g.face]:
        pencil.wash(points, skin, 0.75)
        pencil.trace(points)
    shade = np.add(g.face, (0.07 * lx, -0.03))
    face_shadow = ImageChops.subtract(canvas.mask(g.face), canvas.mask(shade))
    canvas.drawing.paste(mix(skin, GRAPHITE, 0.55), (0, 0), ImageChops.multiply(face_shadow, _hatch(canvas.pixels, 0.028)))
    _features(canvas, pencil, g, portrait)
    for points in [*g.locks, g.hair_front]:
        pencil.wash(points, hair, 0.7)
        pencil.hatch([points], [np.add(points, (0.1 * lx, -0.02))], mix(hair, GRAPHITE, 0.45))
        pencil.trace(points)
    for rim in glasses_rims(portrait, g, 0.34):
        pencil.trace(rim, 0.009)
    for bridge in glasses_bridge(portrait, g, 0.34):
        pencil.trace(bridge, 0.008, closed=False)
    for points, colour in accessory_parts(portrait, g):
        pencil.wash(points, colour, 0.7)
        pencil.trace(points, 0.006)
    return canvas.image()


def canvas_colour(portrait: Portrait) -> Colour:
    """The colour of paper with a wash of the background's."""
    return mix(PAPER, portrait.background_rgb, 0.5)


def _features(canvas: Canvas, pencil: _Pencil, g: Geometry, portrait: Portrait) -> None:
    f, p, skin = g.frame, g.proportions, portrait.skin_rgb
    ink = mix(GRAPHITE, (30, 28, 32), 0.6)
    look = {"left": -0.07, "ahead": 0.0, "right": 0.07}[portrait.gaze]
    for side in (-1, 1):
        u, v = side * p.eye_u, p.eye_v
        ry = {"round": 0.17, "almond": 0.13, "sleepy": 0.09}[portrait.eye_shape]
        shape = f(ellipse(u, v, 0.24, ry))
        canvas.fill(shape, mix(PAPER, (255, 255, 255), 0.5))
        canvas.fill_inside(canvas.mask(shape), [f(ellipse(u + look, v, 0.13, 0.14))], mix(PAPER, portrait.eye_rgb, 0.8))
        canvas.fill(f(ellipse(u + look, v, 0.06, min(ry, 0.07), 18)), ink)
        canvas.line(np.concatenate([shape, shape[:2]]), ink, 0.007)
        upper = smooth_curve([(u - 0.25, v), (u, v - ry * 1.08), (u + 0.25, v)])
        canvas.stroke(f(upper), ink, 0.013, (0.4, 0.4))
        thick = {"thin": 0.010, "thick": 0.024, "angry": 0.017}[portrait.brows]
        drop = 0.13 if portrait.brows == "angry" else 0.0
        brow = smooth_curve([(side * 0.2, p.brow_v + drop), (side * 0.42, p.brow_v - 0.05), (side * 0.66, p.brow_v + 0.02)])
        canvas.fill(ribbon(f(brow), thick, (0.7, 0.2)), mix(portrait.hair_rgb, ink, 0.6))
        if portrait.cheeks == "blush":
            cheek = f(ellipse(side * 0.58, 0.48, 0.2, 0.13))
            canvas.fill_inside(canvas.mask(g.face), [cheek], mix(mix(PAPER, skin, 0.75), (235, 80, 90), 0.3))
        if portrait.cheeks == "freckles":
            for du, dv in ((-0.12, 0.0), (0.0, 0.07), (0.12, -0.01)):
                x, y = f([(side * 0.56 + du, 0.46 + dv)])[0]
                canvas.dot(x, y, 0.006, mix(skin, GRAPHITE, 0.7))
    nose = smooth_curve([(0.05, 0.15), (0.12, 0.44), (0.02, 0.52), (-0.08, 0.49)])
    canvas.stroke(f(nose), mix(skin, GRAPHITE, 0.8), 0.009, (0.2, 0.6))
    r, v = p.mouth_rx, p.mouth_v
    if portrait.mouth == "open":
        shape = f(smooth_curve([(-r, v - 0.06), (0, v - 0.03), (r, v - 0.06), (0, v + 0.2)], True))
        canvas.fill(shape, mix(PAPER, (150, 50, 60), 0.75))
        canvas.line(np.concatenate([shape, shape[:2]]), ink, 0.007)
        return
    bend = {"smile": 0.12, "neutral": 0.0, "sad": -0.12}[portrait.mouth]
    canvas.stroke(
        f(smooth_curve([(-r, v - bend * 0.6), (0, v + bend * 0.6), (r, v - bend * 0.6)])),
        mix((170, 70, 74), GRAPHITE, 0.5),
        0.013,
        (0.4, 0.4),
    )
