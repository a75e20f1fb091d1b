"""Photo style: realistic proportions, soft light from one side, blurred background, no outlines.

The colours are drawn flat first and then multiplied by a light map: shading of a rounded head from its
normals, soft shadows under hair, chin and nose, highlights in hair and eyes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .canvas import Canvas, Colour, Points, ellipse, mix, ribbon, smooth_curve
from .geometry import REALISTIC, Geometry, build
from .parts import accessory_parts, background_parts, clothes_parts, glasses_bridge, glasses_rims
from .portraits import Portrait

Map = NDArray[np.float32]
"""(size, size) values, 1 = unchanged."""


def render(portrait: Portrait, size: int = 128) -> Image.Image:
    """Draw a portrait as a soft photograph: RGB, ``size`` pixels square."""
    g = build(portrait, REALISTIC)
    backdrop = _backdrop(portrait, size)
    figure, mask = _albedo(portrait, g, size)
    light, shine = _light(portrait, g, size)
    colour = np.asarray(figure, dtype=np.float32) * light[..., None] + 255.0 * shine[..., None]
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255.0
    out = np.asarray(backdrop, dtype=np.float32) * (1 - alpha) + colour * alpha
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def _backdrop(portrait: Portrait, size: int) -> Image.Image:
    base = portrait.background_rgb
    canvas = Canvas(size, base, factor=2)
    second = mix(base, (255, 255, 255), 0.4)
    if portrait.background == "gradient":
        ramp = np.linspace(0, 1, canvas.pixels, dtype=np.float32)[:, None, None]
        rows = np.array(base, np.float32) * (1 - ramp) + np.array(second, np.float32) * ramp
        rows = np.broadcast_to(rows, (canvas.pixels, canvas.pixels, 3))
        canvas.drawing.paste(Image.fromarray(rows.astype(np.uint8)))
    for points, colour in background_parts(portrait, second):
        canvas.fill(points, colour)
    image = canvas.image().filter(ImageFilter.GaussianBlur(size * 0.012))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    falloff = 1.04 - 0.28 * (x * x + y * y) - 0.08 * x * portrait.light
    return Image.fromarray(np.clip(np.asarray(image) * falloff[..., None], 0, 255).astype(np.uint8))


def _albedo(portrait: Portrait, g: Geometry, size: int) -> tuple[Image.Image, Image.Image]:
    """The person without light, and the mask of the person."""
    hair, skin, main = portrait.hair_rgb, portrait.skin_rgb, portrait.clothes_rgb
    canvas = Canvas(size, skin)
    rng = g.rng
    for points in g.hair_back:
        canvas.fill(points, mix(hair, (0, 0, 0), 0.22))
    for x, y in g.tie_points:
        canvas.dot(x, y, 0.024, (190, 60, 80))
    canvas.fill(g.body, main)
    canvas.fill(g.neck, mix(skin, (80, 30, 20), 0.18))
    clothes = clothes_parts(portrait, mix(skin, (80, 30, 20), 0.14), main, mix(main, (0, 0, 0), 0.16), mix(main, (255, 255, 255), 0.12))
    for points, colour in clothes:
        canvas.fill(points, colour)
    for ear in g.ears:
        canvas.fill(ear, mix(skin, (200, 80, 60), 0.18))
    canvas.fill(g.face, skin)
    _features(canvas, portrait, g)
    front = [*g.locks, g.hair_front]
    for points in front:
        canvas.fill(points, hair)
    inside = canvas.mask(*front)
    strands = Canvas(size, (0, 0, 0), factor=canvas.factor)
    strands.drawing = canvas.drawing.copy()
    strands.draw = type(canvas.draw)(strands.drawing)
    for i in range(18):
        a = np.pi * (0.06 + 0.88 * (i + rng.random()) / 18)
        d = np.array([np.cos(a), -np.sin(a)])
        low = 1.9 if portrait.hair_style == "long" else 0.7
        start = np.array([0.1 * portrait.side, -1.3]) + d * 0.05
        path = smooth_curve(
            np.stack([start, d * (1.0, 0.7) + (0, -0.5), d * (1.22, 0.2) + (0, 0.1), np.array([d[0] * 1.24, low])]), steps=5
        )
        tone = mix(hair, (255, 255, 255) if i % 2 else (0, 0, 0), 0.13 + 0.1 * rng.random())
        strands.fill(ribbon(g.frame(path), 0.018, (0.3, 0.3)), tone)
    canvas.drawing.paste(strands.drawing, (0, 0), inside)
    for rim in glasses_rims(portrait, g, 0.34):
        canvas.outline(rim, (38, 36, 44), 0.012)
    for bridge in glasses_bridge(portrait, g, 0.34):
        canvas.line(bridge, (38, 36, 44), 0.011)
    extras = accessory_parts(portrait, g)
    for points, colour in extras:
        canvas.fill(points, colour)
    shapes = [*g.hair_back, g.body, g.neck, *g.ears, g.face, *front, *(points for points, _ in [*extras, *clothes])]
    return canvas.image(), canvas.mask(*shapes).reduce(canvas.factor)


def _features(canvas: Canvas, portrait: Portrait, g: Geometry) -> None:
    f, p, skin = g.frame, g.proportions, portrait.skin_rgb
    dark: Colour = (44, 30, 30)
    look = {"left": -0.07, "ahead": 0.0, "right": 0.07}[portrait.gaze]
    for side in (-1, 1):
        u, v = side * p.eye_u, p.eye_v
        ry = {"round": 0.155, "almond": 0.12, "sleepy": 0.085}[portrait.eye_shape]
        outer = side
        shape = f(
            smooth_curve(
                [
                    (u - 0.24 * outer, v + 0.03),
                    (u - 0.1 * outer, v - ry * 0.86),
                    (u + 0.06 * outer, v - ry),
                    (u + 0.24 * outer, v - 0.01),
                    (u + 0.08 * outer, v + ry * 0.9),
                    (u - 0.1 * outer, v + ry * 0.8),
                ],
                True,
            )
        )
        canvas.fill(f(ellipse(u, v - 0.03, 0.29, ry + 0.07)), mix(skin, (110, 50, 40), 0.22))
        canvas.fill(shape, (240, 238, 236))
        mask = canvas.mask(shape)
        canvas.fill_inside(mask, [f(ellipse(u + look, v, 0.125, 0.135))], mix(portrait.eye_rgb, (0, 0, 0), 0.25))
        canvas.fill_inside(mask, [f(ellipse(u + look, v + 0.02, 0.1, 0.1))], portrait.eye_rgb)
        canvas.fill_inside(mask, [f(ellipse(u + look, v, 0.058, 0.06, 18))], (18, 14, 16))
        x, y = f([(u + look - 0.045 * portrait.light, v - 0.05)])[0]
        canvas.dot(x, y, 0.0075, (255, 255, 255))
        lash = smooth_curve(
            [(u - 0.25 * outer, v + 0.03), (u - 0.1 * outer, v - ry * 0.9), (u + 0.06 * outer, v - ry * 1.04), (u + 0.27 * outer, v - 0.02)]
        )
        canvas.stroke(f(lash), dark, 0.011, (0.3, 0.6))
        thick = {"thin": 0.011, "thick": 0.026, "angry": 0.018}[portrait.brows]
        drop = 0.13 if portrait.brows == "angry" else 0.0
        brow = smooth_curve([(side * 0.2, p.brow_v + drop), (side * 0.44, p.brow_v - 0.06), (side * 0.68, p.brow_v + 0.02)])
        canvas.stroke(f(brow), mix(portrait.hair_rgb, (40, 26, 20), 0.55), thick, (0.8, 0.25))
        if portrait.cheeks == "blush":
            for i, r in enumerate((0.28, 0.22, 0.15)):
                canvas.fill_inside(
                    canvas.mask(g.face), [f(ellipse(side * 0.6, 0.47, r, r * 0.72))], mix(skin, (228, 70, 84), 0.12 + 0.09 * i)
                )
        if portrait.cheeks == "freckles":
            for du, dv in ((-0.14, 0.0), (0.0, 0.07), (0.13, -0.01)):
                x, y = f([(side * 0.56 + du, 0.46 + dv)])[0]
                canvas.dot(x, y, 0.006, mix(skin, (120, 60, 20), 0.5))
        x, y = f([(side * 0.075, p.nose_v + 0.04)])[0]
        canvas.dot(x, y, 0.008, mix(skin, (90, 30, 24), 0.55))
    r, v = p.mouth_rx, p.mouth_v
    lip = mix(skin, (190, 60, 70), 0.5)
    if portrait.mouth == "open":
        shape = smooth_curve(
            [(-r, v - 0.05), (-0.1, v - 0.1), (0, v - 0.08), (0.1, v - 0.1), (r, v - 0.05), (0.14, v + 0.19), (-0.14, v + 0.19)], True
        )
        canvas.fill(f(shape), lip)
        canvas.fill(f(ellipse(0, v + 0.035, r * 0.7, 0.085)), (90, 26, 34))
        canvas.fill(f(ellipse(0, v - 0.015, r * 0.55, 0.03, 16)), (240, 234, 230))
        return
    bend = {"smile": 0.1, "neutral": 0.0, "sad": -0.1}[portrait.mouth]
    top = smooth_curve(
        [
            (-r, v - bend * 0.8),
            (-0.1, v - 0.07 + bend * 0.2),
            (0, v - 0.045 + bend * 0.3),
            (0.1, v - 0.07 + bend * 0.2),
            (r, v - bend * 0.8),
            (0.12, v + 0.1 + bend * 0.5),
            (-0.12, v + 0.1 + bend * 0.5),
        ],
        True,
    )
    canvas.fill(f(top), lip)
    canvas.stroke(
        f(smooth_curve([(-r, v - bend * 0.8), (0, v + 0.01 + bend * 0.4), (r, v - bend * 0.8)])),
        mix(lip, (60, 10, 16), 0.6),
        0.009,
        (0.4, 0.4),
    )


def _soft(shapes: list[Points], size: int, blur: float, shift: tuple[float, float] = (0, 0)) -> Map:
    """Blurred mask of shapes in 0..1; ``blur`` and ``shift`` in image widths."""
    canvas = Canvas(size, 0, factor=1, mode="L")
    for points in shapes:
        canvas.fill(points + np.array(shift), 255)
    return np.asarray(canvas.drawing.filter(ImageFilter.GaussianBlur(blur * size)), np.float32) / 255.0


def _light(portrait: Portrait, g: Geometry, size: int) -> tuple[Map, Map]:
    """Light to multiply with, and light to add."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float64) + 0.5) / size
    head = g.frame.inverse(np.stack([x, y], axis=-1))
    u, v = head[..., 0].astype(np.float32), head[..., 1].astype(np.float32)
    lx = -portrait.light * 0.62

    def lambert(cu: float, cv: float, ru: float, rv: float) -> Map:
        nu, nv = (u - cu) / ru, (v - cv) / rv
        nz = np.sqrt(np.clip(1 - nu * nu - nv * nv, 0.02, 1))
        shade: Map = np.clip(nu * lx + nv * -0.42 + nz * 0.72, 0, 1).astype(np.float32)
        return shade

    face = _soft([g.face, *g.ears], size, 0.006)
    hair_front = _soft([*g.locks, g.hair_front], size, 0.006)
    light = np.ones((size, size), np.float32)
    skin_light = 0.60 + 0.52 * lambert(0, 0.05, 1.25, 1.5)
    skin_light *= 1 - 0.34 * _soft([g.hair_front], size, 0.022, (0.012 * portrait.light, 0.028))
    skin_light *= 1 - 0.22 * np.exp(-(((u - 0.14 * portrait.light) / 0.1) ** 2) - ((v - 0.34) / 0.2) ** 2)
    skin_light *= 1 - 0.16 * np.exp(-((u / 0.22) ** 2) - ((v - 1.0) / 0.06) ** 2)
    skin_light *= 1 + 0.10 * np.exp(-((u / 0.09) ** 2) - ((v - 0.36) / 0.16) ** 2)
    body = 1.06 - 0.30 * _soft([g.face], size, 0.03, (0.0, 0.09)) + 0.28 * (x - 0.5).astype(np.float32) * -portrait.light
    body *= 1 - 0.30 * np.clip((y.astype(np.float32) - 0.82) / 0.2, 0, 1) ** 2
    hair_light = 0.56 + 0.62 * lambert(0, -0.2, 1.5, 1.6)
    light = light * body
    light = light * (1 - face) + skin_light * face
    back = _soft(g.hair_back, size, 0.006) * (1 - face) * (1 - _soft([g.body], size, 0.004))
    light = light * (1 - back * (1 - hair_front)) + (0.82 * hair_light) * back * (1 - hair_front)
    light = light * (1 - hair_front) + hair_light * hair_front
    band = np.exp(-(((np.hypot(u * 0.95, (v + 0.2)) - 0.98) / 0.13) ** 2)) * np.clip(-v - 0.45, 0, 0.5) * 2
    side = np.clip(0.6 - 0.5 * u * portrait.light, 0, 1)
    shine = 0.26 * band * side * hair_front * (portrait.accessory != "beanie")
    return light.astype(np.float32), shine.astype(np.float32)
