"""Hair and eyebrows of the anime style."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, Colour, Points, mix, smooth_curve
from .cel_shading import INK, LINE, shadow
from .geometry import Geometry
from .portraits import Portrait


def draw_back_hair(canvas: Canvas, g: Geometry, hair: Colour, portrait: Portrait) -> None:
    """The hair behind the head, with ties."""
    dark = shadow(hair)
    for points in g.hair_back:
        canvas.fill(points, dark)
        canvas.outline(points, INK, LINE)
    tails = g.hair_back[:-1] if portrait.hair_style in ("ponytail", "twin tails", "bun") else []
    for points in tails:
        centre = points.mean(axis=0)
        inner = centre + (points - centre) * [0.62, 0.82] - [0.012 * portrait.light, 0.012]
        canvas.fill_inside(canvas.mask(points), [inner], hair)
    for tie in g.tie_points:
        canvas.dot(tie[0], tie[1], 0.034, INK)
        canvas.dot(tie[0], tie[1], 0.024, (230, 70, 90))


def draw_locks(canvas: Canvas, g: Geometry, hair: Colour) -> None:
    """The locks in front of the ears."""
    for points in g.locks:
        canvas.fill(points, hair)
        inner = np.add(points, (0.016, 0.03))
        canvas.fill_inside(canvas.mask(points), [inner * [1, 1.0] + [0.012, 0.0]], shadow(hair))
        canvas.outline(points, INK, LINE)


def draw_front_hair(canvas: Canvas, g: Geometry, portrait: Portrait, hair: Colour) -> None:
    """The fringe, with shadow, light and strands."""
    dark, light = shadow(hair), mix(hair, (255, 255, 255), 0.55)
    canvas.fill(g.hair_front, hair)
    mask = canvas.mask(g.hair_front)
    f = g.frame
    crown = np.array([0.1 * portrait.side, -1.35])
    # Shadow: a wedge on the side away from the light, and the tips of the strands.
    lx = portrait.light
    wedge = smooth_curve([(1.3 * lx, -1.2), (0.98 * lx, -0.9), (0.86 * lx, -0.3), (0.9 * lx, 0.8), (1.5 * lx, 0.8)], True)
    canvas.fill_inside(mask, [f(wedge)], dark)
    tips = f.inverse(_strand_tips(g))
    for i, tip in enumerate(tips):
        root = tip + (crown - tip) * 0.42
        bulge = 0.05 * (1 if i % 2 else -1)
        middle = (tip + root) / 2
        blade = smooth_curve(
            [
                np.add(tip, (-0.05, 0.3)),
                np.add(tip, (-0.035, 0.0)),
                np.add(middle, (bulge, 0)),
                root,
                np.add(middle, (bulge + 0.05, 0)),
                np.add(tip, (0.06, 0.05)),
                np.add(tip, (0.05, 0.3)),
            ],
            True,
            4,
        )
        if i % 2 == 0:
            canvas.fill_inside(mask, [f(blade)], dark)
    if portrait.accessory != "beanie":
        # The ring of light: a zigzag band that follows the skull.
        t = np.linspace(np.pi * 0.86, np.pi * 0.14, 25)
        top = np.stack([0.86 * np.cos(t), -0.30 - 0.74 * np.sin(t)], axis=1)
        saw = np.where(np.arange(25) % 4 < 2, 0.11, 0.02) * np.clip(np.sin(np.pi * np.linspace(0, 1, 25)) * 2, 0, 1)
        bottom = top * 1.0 + np.stack([np.zeros(25), saw + 0.03], axis=1)
        canvas.fill_inside(mask, [f(np.concatenate([top, bottom[::-1]]))], light)
    for i, tip in enumerate(tips):
        root = tip + (crown - tip) * (0.5 if i % 2 else 0.36)
        middle = (tip + root) / 2 + np.array([0.05 * np.sign(tip[0] + 1e-6), 0.0])
        canvas.stroke(f(smooth_curve([np.add(tip, (0, 0.02)), middle, root])), INK, LINE * 0.8, (0.8, 0.1))
    canvas.outline(g.hair_front, INK, LINE)


def draw_brows(canvas: Canvas, g: Geometry, portrait: Portrait, hair: Colour) -> None:
    """Both eyebrows."""
    p = g.proportions
    width = {"thin": 0.010, "thick": 0.021, "angry": 0.016}[portrait.brows]
    for side in (-1, 1):
        inner, outer = side * 0.24, side * 0.66
        drop = 0.14 if portrait.brows == "angry" else -0.02
        v = p.brow_v
        curve = smooth_curve([(inner, v + drop), (side * 0.46, v - 0.07 + drop * 0.2), (outer, v + 0.0)])
        canvas.stroke(g.frame(curve), mix(hair, INK, 0.75), width, (0.8, 0.2))


def _strand_tips(g: Geometry) -> Points:
    """Points along the fringe's edge from which strands rise, (n, 2)."""
    line = g.fringe_line
    chosen: Points = line[np.linspace(0, len(line) - 1, 8).astype(int)[1:-1]]
    return chosen
