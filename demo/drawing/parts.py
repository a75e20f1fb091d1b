"""Shapes that all renderers draw in their own colours: background, clothes, accessories, glasses."""

from __future__ import annotations

import numpy as np

from .canvas import Colour, Points, ellipse, mix, smooth_curve
from .geometry import BODY_DOWN, Geometry
from .portraits import Portrait

Part = tuple[Points, Colour]


def background_parts(portrait: Portrait, second: Colour) -> list[Part]:
    """The pattern on top of the background colour (nothing for plain and gradient)."""
    kind = portrait.background
    if kind == "striped":
        stripes = []
        for i in range(-4, 7):
            x = i * 0.24
            stripes.append((np.array([(x, -0.01), (x + 0.12, -0.01), (x + 0.52, 1.01), (x + 0.40, 1.01)]), second))
        return stripes
    if kind == "dotted":
        rows = range(6)
        return [
            (ellipse(0.1 + 0.2 * i + (0.1 if j % 2 else 0.0), 0.08 + 0.17 * j, 0.045, 0.045, 20), second)
            for j in rows
            for i in range(-1, 6)
        ]
    if kind == "circle":
        return [(ellipse(0.5, 0.42, 0.42, 0.42, 72), second)]
    return []


def clothes_parts(portrait: Portrait, skin: Colour, main: Colour, dark: Colour, light: Colour) -> list[Part]:
    """Polygons on top of the body: collars, hoods, laces, lapels."""
    dx = portrait.shift_x

    def at(points: list[tuple[float, float]], mirror: bool = False) -> Points:
        p = np.array(points)
        if mirror:
            p = p * [-1, 1] + [1.0, 0.0]
        placed: Points = np.add(p, (dx, BODY_DOWN))
        return placed

    kind = portrait.clothes
    if kind == "t-shirt":
        collar = smooth_curve(at([(0.37, 0.79), (0.42, 0.875), (0.5, 0.905), (0.58, 0.875), (0.63, 0.79), (0.5, 0.76)]), True)
        neckline = smooth_curve(at([(0.395, 0.775), (0.435, 0.855), (0.5, 0.88), (0.565, 0.855), (0.605, 0.775), (0.5, 0.74)]), True)
        return [(collar, dark), (neckline, skin)]
    if kind == "shirt":
        left = [(0.41, 0.745), (0.36, 0.80), (0.42, 0.90), (0.5, 0.86)]
        vee = at([(0.42, 0.74), (0.5, 0.86), (0.58, 0.74)])
        placket = at([(0.488, 0.86), (0.512, 0.86), (0.512, 1.02), (0.488, 1.02)])
        return [(vee, skin), (placket, dark), (at(left), light), (at(left, True), light)]
    if kind == "hoodie":
        hood = smooth_curve(
            at(
                [
                    (0.31, 0.83),
                    (0.35, 0.75),
                    (0.42, 0.72),
                    (0.5, 0.77),
                    (0.58, 0.72),
                    (0.65, 0.75),
                    (0.69, 0.83),
                    (0.6, 0.90),
                    (0.5, 0.92),
                    (0.4, 0.90),
                ]
            ),
            True,
        )
        inside = smooth_curve(at([(0.42, 0.76), (0.46, 0.83), (0.5, 0.85), (0.54, 0.83), (0.58, 0.76), (0.5, 0.72)]), True)
        lace = [(0.445, 0.88), (0.457, 0.88), (0.452, 0.985), (0.44, 0.985)]
        return [(hood, dark), (inside, skin), (at(lace), (245, 245, 240)), (at(lace, True), (245, 245, 240))]
    if kind == "turtleneck":
        collar = smooth_curve(
            at([(0.415, 0.70), (0.405, 0.78), (0.39, 0.83), (0.5, 0.86), (0.61, 0.83), (0.595, 0.78), (0.585, 0.70), (0.5, 0.725)]), True
        )
        return [(collar, light)]
    inner = at([(0.41, 0.76), (0.5, 0.80), (0.59, 0.76), (0.56, 1.02), (0.44, 1.02)])
    vee = smooth_curve(at([(0.42, 0.75), (0.45, 0.83), (0.5, 0.85), (0.55, 0.83), (0.58, 0.75), (0.5, 0.73)]), True)
    lapel = [(0.41, 0.755), (0.345, 0.80), (0.375, 0.90), (0.345, 0.92), (0.45, 1.02), (0.455, 0.93)]
    return [(inner, (240, 240, 238)), (vee, skin), (at(lapel), dark), (at(lapel, True), dark)]


ACCESSORY_RGB: dict[str, Colour] = {
    "earrings": (240, 190, 50),
    "bow": (222, 48, 82),
    "headphones": (60, 62, 74),
    "beanie": (72, 104, 158),
    "flower": (252, 236, 244),
}


def accessory_parts(portrait: Portrait, geometry: Geometry) -> list[Part]:
    """The accessory's polygons from back to front."""
    kind, s, frame = portrait.accessory, portrait.side, geometry.frame
    if kind == "none":
        return []
    rgb = ACCESSORY_RGB[kind]
    dark = mix(rgb, (0, 0, 0), 0.25)
    if kind == "earrings":
        return [(frame(ellipse(side * 1.08, 0.56, 0.1, 0.12, 20)), rgb) for side in (-1, 1)]
    if kind == "bow":
        c = np.array([0.62 * s, -1.14])
        wing = np.array([(0.05, 0.0), (0.46, -0.3), (0.55, 0.0), (0.46, 0.28)])
        turn = np.array([[0.92, 0.38 * s], [-0.38 * s, 0.92]])
        shapes = [(frame(wing @ turn + c), rgb), (frame((wing * [-1, 1]) @ turn + c), rgb)]
        return [*shapes, (frame(ellipse(c[0], c[1], 0.13, 0.13, 16)), dark)]
    if kind == "headphones":
        t = np.linspace(np.pi * 1.02, -np.pi * 0.02, 24)
        outer = np.stack([1.27 * np.cos(t), -0.1 - 1.46 * np.sin(t)], axis=1)
        inner = np.stack([1.15 * np.cos(t), -0.1 - 1.30 * np.sin(t)], axis=1)
        shapes = [(frame(np.concatenate([outer, inner[::-1]])), rgb)]
        for side in (-1, 1):
            shapes.append((frame(ellipse(side * 1.18, 0.15, 0.24, 0.36)), rgb))
            shapes.append((frame(ellipse(side * 1.23, 0.15, 0.12, 0.22)), (220, 60, 60)))
        return shapes
    if kind == "beanie":
        t = np.linspace(np.pi, 0, 20)
        dome = np.stack([1.24 * np.cos(t), -0.62 - 1.02 * np.sin(t)], axis=1)
        brim = smooth_curve(
            [
                (-1.28, -0.6),
                (-0.6, -0.84),
                (0, -0.9),
                (0.6, -0.84),
                (1.28, -0.6),
                (1.24, -0.34),
                (0.6, -0.56),
                (0, -0.62),
                (-0.6, -0.56),
                (-1.24, -0.34),
            ],
            True,
            4,
        )
        return [(frame(ellipse(0, -1.66, 0.2, 0.2, 16)), dark), (frame(dome), rgb), (frame(brim), dark)]
    c = np.array([0.78 * s, -0.86])
    petals: list[Part] = []
    for i in range(5):
        a = 2 * np.pi * i / 5 + 0.3
        petals.append((frame(ellipse(c[0] + 0.2 * np.cos(a), c[1] + 0.2 * np.sin(a), 0.16, 0.16, 16)), rgb))
    return [*petals, (frame(ellipse(c[0], c[1], 0.12, 0.12, 14)), (246, 190, 40))]


def glasses_rims(portrait: Portrait, geometry: Geometry, radius: float) -> list[Points]:
    """Closed outlines of both lenses (nothing without glasses); ``radius`` in head units."""
    if portrait.glasses == "none":
        return []
    p = geometry.proportions
    rims = []
    for side in (-1, 1):
        u, v = side * p.eye_u, p.eye_v + 0.02
        if portrait.glasses == "round":
            rims.append(geometry.frame(ellipse(u, v, radius, radius, 32)))
        else:
            t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            c, w = np.cos(t), np.sin(t)
            box = np.stack([np.sign(c) * np.abs(c) ** 0.4, 0.8 * np.sign(w) * np.abs(w) ** 0.4], axis=1)
            rims.append(geometry.frame(box * radius + [u, v]))
    return rims


def glasses_bridge(portrait: Portrait, geometry: Geometry, radius: float) -> list[Points]:
    """The lines that join the lenses with each other and with the ears."""
    if portrait.glasses == "none":
        return []
    p = geometry.proportions
    inner, outer, v = p.eye_u - radius, p.eye_u + radius, p.eye_v + 0.0
    return [
        geometry.frame(smooth_curve([(-inner, v), (0, v - 0.07), (inner, v)])),
        geometry.frame([(outer, v), (1.02, v - 0.03)]),
        geometry.frame([(-outer, v), (-1.02, v - 0.03)]),
    ]
