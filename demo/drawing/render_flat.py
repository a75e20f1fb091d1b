"""Flat style: plain areas of colour without outlines, dots for eyes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .canvas import Canvas, Colour, ellipse, mix, smooth_curve
from .geometry import REALISTIC, build
from .parts import accessory_parts, background_parts, clothes_parts, glasses_bridge, glasses_rims
from .portraits import Portrait


def render(portrait: Portrait, size: int = 128) -> Image.Image:
    """Draw a portrait in flat colours: RGB, ``size`` pixels square."""
    g = build(portrait, REALISTIC)
    base = portrait.background_rgb
    hair, skin, main = portrait.hair_rgb, portrait.skin_rgb, portrait.clothes_rgb
    second = mix(base, (255, 255, 255), 0.3)
    canvas = Canvas(size, base)
    if portrait.background == "gradient":
        canvas.fill(np.array([(-0.01, 0.5), (1.01, 0.5), (1.01, 1.01), (-0.01, 1.01)]), second)
    for points, colour in background_parts(portrait, second):
        canvas.fill(points, colour)
    for points in g.hair_back:
        canvas.fill(points, mix(hair, (0, 0, 0), 0.14))
    for x, y in g.tie_points:
        canvas.dot(x, y, 0.026, (220, 70, 90))
    canvas.fill(g.body, main)
    canvas.fill(g.neck, mix(skin, (90, 40, 30), 0.14))
    for points, colour in clothes_parts(
        portrait, mix(skin, (90, 40, 30), 0.14), main, mix(main, (0, 0, 0), 0.2), mix(main, (255, 255, 255), 0.22)
    ):
        canvas.fill(points, colour)
    for points in [*g.ears, g.face]:
        canvas.fill(points, skin)
    f, p = g.frame, g.proportions
    dark: Colour = (46, 36, 40)
    look = {"left": -0.07, "ahead": 0.0, "right": 0.07}[portrait.gaze]
    for side in (-1, 1):
        if portrait.cheeks == "blush":
            canvas.fill(f(ellipse(side * 0.58, 0.48, 0.2, 0.13)), mix(skin, (240, 90, 100), 0.3))
        if portrait.cheeks == "freckles":
            for du, dv in ((-0.12, 0.0), (0.0, 0.07), (0.12, -0.01)):
                x, y = f([(side * 0.56 + du, 0.46 + dv)])[0]
                canvas.dot(x, y, 0.0065, mix(skin, (120, 60, 20), 0.5))
        u, v = side * p.eye_u, p.eye_v
        ry = {"round": 0.17, "almond": 0.13, "sleepy": 0.09}[portrait.eye_shape]
        canvas.fill(f(ellipse(u, v, 0.23, ry)), (250, 250, 250))
        canvas.fill_inside(canvas.mask(f(ellipse(u, v, 0.23, ry))), [f(ellipse(u + look, v, 0.14, 0.15))], portrait.eye_rgb)
        canvas.fill(f(ellipse(u + look, v, 0.065, min(ry, 0.075), 18)), dark)
        thick = {"thin": 0.012, "thick": 0.026, "angry": 0.019}[portrait.brows]
        drop = 0.13 if portrait.brows == "angry" else 0.0
        brow = smooth_curve([(side * 0.2, p.brow_v + drop), (side * 0.42, p.brow_v - 0.04), (side * 0.66, p.brow_v)])
        canvas.stroke(f(brow), mix(hair, dark, 0.5), thick, (0.9, 0.6))
    canvas.fill(f([(0.0, 0.2), (0.1, 0.5), (-0.1, 0.5)]), mix(skin, (110, 50, 40), 0.2))
    r, v = p.mouth_rx, p.mouth_v
    if portrait.mouth == "open":
        canvas.fill(f(smooth_curve([(-r, v - 0.06), (0, v - 0.03), (r, v - 0.06), (0, v + 0.2)], True)), (150, 50, 60))
    else:
        bend = {"smile": 0.12, "neutral": 0.0, "sad": -0.12}[portrait.mouth]
        canvas.stroke(f(smooth_curve([(-r, v - bend * 0.6), (0, v + bend * 0.6), (r, v - bend * 0.6)])), (170, 70, 74), 0.018, (0.6, 0.6))
    for points in [*g.locks, g.hair_front]:
        canvas.fill(points, hair)
    for rim in glasses_rims(portrait, g, 0.34):
        canvas.outline(rim, (40, 40, 52), 0.014)
    for bridge in glasses_bridge(portrait, g, 0.34):
        canvas.line(bridge, (40, 40, 52), 0.013)
    for points, colour in accessory_parts(portrait, g):
        canvas.fill(points, colour)
    return canvas.image()
