"""The held-back style: cel shading in two tones, clean dark outlines, big eyes, pointed strands of hair."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .anime_hair import draw_back_hair, draw_brows, draw_front_hair, draw_locks
from .canvas import Canvas, Colour, ellipse, mix, smooth_curve
from .cel_shading import INK, LINE, shadow, vivid
from .geometry import ANIME, Geometry, build
from .parts import accessory_parts, background_parts, clothes_parts, glasses_bridge, glasses_rims
from .portraits import Portrait


def render(portrait: Portrait, size: int = 128) -> Image.Image:
    """Draw a portrait as anime: RGB, ``size`` pixels square."""
    g = build(portrait, ANIME)
    hair, skin = vivid(portrait.hair_rgb), vivid(portrait.skin_rgb, 0.1)
    canvas = Canvas(size, vivid(portrait.background_rgb))
    _background(canvas, portrait)
    draw_back_hair(canvas, g, hair, portrait)
    _body(canvas, g, portrait, skin)
    _face(canvas, g, portrait, skin)
    for side in (-1, 1):
        _eye(canvas, g, portrait, side)
    _mouth_and_nose(canvas, g, portrait, skin)
    draw_locks(canvas, g, hair)
    draw_front_hair(canvas, g, portrait, hair)
    draw_brows(canvas, g, portrait, hair)
    _extras(canvas, g, portrait)
    return canvas.image()


def _background(canvas: Canvas, portrait: Portrait) -> None:
    base = vivid(portrait.background_rgb)
    light = mix(base, (255, 255, 255), 0.45)
    if portrait.background == "gradient":
        # A cel gradient is a stack of clean bands.
        for i in range(4):
            y = 0.25 * i
            band = np.array([(-0.01, y), (1.01, y), (1.01, 1.01), (-0.01, 1.01)])
            canvas.fill(band, mix(base, light, i / 3))
    for points, colour in background_parts(portrait, light):
        canvas.fill(points, colour)


def _body(canvas: Canvas, g: Geometry, portrait: Portrait, skin: Colour) -> None:
    main = vivid(portrait.clothes_rgb)
    dark, light = shadow(main), mix(main, (255, 255, 255), 0.2)
    canvas.fill(g.body, main)
    body = canvas.mask(g.body)
    canvas.fill_inside(body, [np.add(g.body, (0.56 * portrait.light, 0.1)), g.face * [1.25, 1] - [0.125, -0.11]], dark)
    canvas.outline(g.body, INK, LINE)
    canvas.fill(g.neck, skin)
    canvas.fill_inside(canvas.mask(g.neck), [np.add(g.face, (0.0, 0.05))], shadow(skin))
    canvas.line(g.neck[[1, 2, 3]], INK, LINE * 0.8)
    canvas.line(g.neck[[0, 5, 4]], INK, LINE * 0.8)
    for points, colour in clothes_parts(portrait, skin, main, dark, light):
        if colour == skin:
            # The neck keeps its shadow: the neckline is filled, then shaded below the chin.
            canvas.fill(points, skin)
            canvas.fill_inside(canvas.mask(points), [np.add(g.face, (0.0, 0.05))], shadow(skin))
        else:
            canvas.fill(points, colour)
        canvas.outline(points, INK, LINE * 0.8)


def _face(canvas: Canvas, g: Geometry, portrait: Portrait, skin: Colour) -> None:
    dark = shadow(skin)
    for ear in g.ears:
        canvas.fill(ear, skin)
        canvas.outline(ear, INK, LINE * 0.9)
    canvas.fill(g.face, skin)
    face = canvas.mask(g.face)
    down = g.frame([(0.05 * portrait.light, 0.11)])[0] - g.frame([(0.0, 0.0)])[0]
    away = g.face + (g.frame([(0.15 * portrait.light, -0.06)])[0] - g.frame([(0.0, 0.0)])[0])
    cheek = canvas.mask(g.face)
    cheek.paste(0, (0, 0), canvas.mask(away))
    canvas.drawing.paste(dark, (0, 0), cheek)
    canvas.fill_inside(face, [g.hair_front + down], dark)
    if portrait.cheeks == "blush":
        for side in (-1, 1):
            blush = g.frame(ellipse(side * 0.6, 0.68, 0.2, 0.1, 20))
            canvas.fill_inside(face, [blush], mix(skin, (255, 90, 110), 0.4))
    if portrait.cheeks == "freckles":
        for side in (-1, 1):
            for du, dv in ((-0.12, 0.0), (0.0, 0.06), (0.12, -0.01)):
                x, y = g.frame([(side * 0.58 + du, 0.66 + dv)])[0]
                canvas.dot(x, y, 0.0065, mix(skin, (120, 50, 20), 0.55))
    canvas.outline(g.face, INK, LINE)


def _eye(canvas: Canvas, g: Geometry, portrait: Portrait, side: int) -> None:
    p = g.proportions
    ry = p.eye_ry * {"round": 1.0, "almond": 0.84, "sleepy": 0.7}[portrait.eye_shape]
    rx = p.eye_rx * {"round": 0.94, "almond": 1.08, "sleepy": 1.04}[portrait.eye_shape]
    u, v = side * p.eye_u, p.eye_v + (p.eye_ry - ry) * 0.35
    outer = 1 if side > 0 else -1
    lift = 0.05 if portrait.eye_shape == "almond" else -0.03 if portrait.eye_shape == "sleepy" else 0.0
    white = smooth_curve(
        [
            (u - rx * outer, v + 0.1 * ry),
            (u - rx * 0.72 * outer, v - 0.72 * ry),
            (u, v - ry),
            (u + rx * 0.74 * outer, v - (0.74 + lift) * ry),
            (u + rx * outer, v - lift),
            (u + rx * 0.72 * outer, v + 0.78 * ry),
            (u, v + ry),
            (u - rx * 0.66 * outer, v + 0.8 * ry),
        ],
        closed=True,
    )
    shape = g.frame(white)
    canvas.fill(shape, (252, 252, 255))
    mask = canvas.mask(shape)
    look = {"left": -0.09, "ahead": 0.0, "right": 0.09}[portrait.gaze]
    iu, iv = u + look - 0.02 * outer, v + 0.06 * ry
    irx, iry = rx * 0.72, ry * 0.86
    colour = vivid(portrait.eye_rgb, 0.3)
    deep = mix(colour, (20, 10, 40), 0.62)
    glow = mix(colour, (255, 255, 255), 0.45)
    canvas.fill_inside(mask, [g.frame(ellipse(iu, iv, irx, iry))], deep)
    canvas.fill_inside(mask, [g.frame(ellipse(iu, iv + 0.24 * iry, irx * 0.86, iry * 0.72))], colour)
    canvas.fill_inside(mask, [g.frame(ellipse(iu, iv + 0.62 * iry, irx * 0.6, iry * 0.3))], glow)
    canvas.fill_inside(mask, [g.frame(ellipse(iu, iv + 0.02 * iry, irx * 0.42, iry * 0.46))], (24, 14, 30))
    canvas.fill_inside(
        mask,
        [
            g.frame(
                [(u - 1.2 * rx, v - 1.3 * ry), (u + 1.2 * rx, v - 1.3 * ry), (u + 1.2 * rx, v - 0.62 * ry), (u - 1.2 * rx, v - 0.62 * ry)]
            )
        ],
        mix(deep, (0, 0, 0), 0.35),
    )
    canvas.fill(g.frame(ellipse(iu - 0.34 * irx, iv - 0.36 * iry, irx * 0.36, iry * 0.28, 18)), (255, 255, 255))
    canvas.fill(g.frame(ellipse(iu + 0.42 * irx, iv + 0.42 * iry, irx * 0.2, iry * 0.15, 14)), (255, 255, 255))
    upper = smooth_curve(
        [
            (u - rx * 1.02 * outer, v + 0.02 * ry),
            (u - rx * 0.72 * outer, v - 0.74 * ry),
            (u, v - 1.02 * ry),
            (u + rx * 0.78 * outer, v - (0.78 + lift) * ry),
            (u + rx * 1.12 * outer, v - (0.12 + lift) * ry),
        ]
    )
    canvas.stroke(g.frame(upper), INK, 0.024, (0.3, 0.75))
    flick = smooth_curve(
        [
            (u + rx * 0.86 * outer, v - (0.5 + lift) * ry),
            (u + rx * 1.12 * outer, v - (0.34 + lift) * ry),
            (u + rx * 1.34 * outer, v - (0.52 + lift) * ry),
        ]
    )
    canvas.stroke(g.frame(flick), INK, 0.014, (0.9, 0.1))
    lower = smooth_curve(
        [(u - rx * 0.5 * outer, v + 0.93 * ry), (u + 0.1 * rx * outer, v + 1.01 * ry), (u + rx * 0.72 * outer, v + 0.8 * ry)]
    )
    canvas.stroke(g.frame(lower), INK, 0.008, (0.2, 0.5))


def _mouth_and_nose(canvas: Canvas, g: Geometry, portrait: Portrait, skin: Colour) -> None:
    p = g.proportions
    line = mix(skin, INK, 0.8)
    turn = {"left": -0.03, "ahead": 0.0, "right": 0.03}[portrait.gaze]
    nose = smooth_curve([(turn + 0.015, p.nose_v - 0.03), (turn + 0.04 * portrait.light, p.nose_v + 0.02), (turn - 0.01, p.nose_v + 0.04)])
    canvas.stroke(g.frame(nose), line, 0.009, (0.5, 0.5))
    r, v = p.mouth_rx, p.mouth_v
    if portrait.mouth == "open":
        shape = g.frame(
            smooth_curve(
                [
                    (turn - r, v - 0.03),
                    (turn, v - 0.015),
                    (turn + r, v - 0.03),
                    (turn + r * 0.6, v + 0.13),
                    (turn, v + 0.18),
                    (turn - r * 0.6, v + 0.13),
                ],
                True,
            )
        )
        canvas.fill(shape, (150, 40, 56))
        canvas.fill_inside(canvas.mask(shape), [g.frame(ellipse(turn, v + 0.17, r * 0.7, 0.08, 18))], (238, 120, 126))
        canvas.outline(shape, INK, LINE * 0.75)
        return
    bend = {"smile": 0.085, "neutral": 0.008, "sad": -0.08}[portrait.mouth]
    width = r * {"smile": 1.25, "neutral": 0.8, "sad": 0.95}[portrait.mouth]
    curve = smooth_curve([(turn - width, v - bend * 0.5), (turn, v + bend * 0.7), (turn + width, v - bend * 0.5)])
    canvas.stroke(g.frame(curve), INK, 0.0115, (0.4, 0.4))


def _extras(canvas: Canvas, g: Geometry, portrait: Portrait) -> None:
    for rim in glasses_rims(portrait, g, 0.43):
        canvas.outline(rim, (46, 40, 58), LINE * 1.1)
    for bridge in glasses_bridge(portrait, g, 0.43):
        canvas.line(bridge, (46, 40, 58), LINE * 1.1)
    for points, colour in accessory_parts(portrait, g):
        canvas.fill(points, colour)
        inner = np.add(points, (0.02 * portrait.light, 0.02))
        centre = points.mean(axis=0)
        canvas.fill_inside(canvas.mask(points), [centre + (inner - centre) * 0.9 + [0.02, 0.02]], shadow(colour))
        canvas.outline(points, INK, LINE * 0.9)
