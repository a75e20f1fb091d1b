"""The positions of all shapes of a portrait, the same for all renderers.

Head coordinates (u, v): the origin is the middle of the face, one unit is half the face's width, v points
down and the frame is tilted with the head. The renderers get polygons in image widths.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from .canvas import Points, ellipse, smooth_curve
from .portraits import Portrait

HEAD_UNIT = 0.225
HEAD_X, HEAD_Y = 0.5, 0.475
BODY_DOWN = 0.05
"""Added to the y of neck, body and clothes, in image widths."""


@dataclass(frozen=True)
class Proportions:
    """Proportions that differ between realistic and stylised faces, in head units."""

    eye_u: float
    eye_v: float
    eye_rx: float
    eye_ry: float
    brow_v: float
    nose_v: float
    mouth_v: float
    mouth_rx: float
    jaw: float
    strands: bool


REALISTIC = Proportions(0.42, 0.10, 0.23, 0.13, -0.24, 0.48, 0.80, 0.30, 0.80, False)
ANIME = Proportions(0.45, 0.20, 0.29, 0.35, -0.28, 0.62, 0.86, 0.17, 0.60, True)


class Frame:
    """Maps head coordinates to image coordinates for one portrait."""

    def __init__(self, portrait: Portrait) -> None:
        a = np.deg2rad(portrait.tilt)
        self.unit = HEAD_UNIT * portrait.scale
        self.rotation = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        self.stretch = np.array([portrait.width, 1.0])
        # The head turns about the chin's height, so that the neck stays where it is.
        pivot = np.array([0.0, 1.0])
        self.pivot = pivot
        self.origin = np.array([HEAD_X + portrait.shift_x, HEAD_Y + portrait.shift_y])

    def __call__(self, points: Points | list[tuple[float, float]] | list[list[float]]) -> Points:
        p = (np.asarray(points, dtype=np.float64) - self.pivot) * self.stretch @ self.rotation + self.pivot
        placed: Points = self.origin + self.unit * p
        return placed

    def inverse(self, points: Points) -> Points:
        """Image coordinates (..., 2) back to head coordinates."""
        p = (points - self.origin) / self.unit - self.pivot
        return p @ self.rotation.T / self.stretch + self.pivot  # type: ignore[no-any-return]


@dataclass
class Geometry:
    """Polygons of one portrait in image widths; lists are drawn in order."""

    frame: Frame
    proportions: Proportions
    face: Points
    ears: list[Points]
    neck: Points
    body: Points
    hair_back: list[Points]
    hair_front: Points
    locks: list[Points]
    fringe_line: Points
    tie_points: list[Points]
    rng: random.Random = field(repr=False)

    def hair(self) -> list[Points]:
        """Every polygon of hair."""
        return [*self.hair_back, *self.locks, self.hair_front]


def build(portrait: Portrait, proportions: Proportions) -> Geometry:
    """Place all shapes of a portrait."""
    frame = Frame(portrait)
    rng = random.Random(f"geometry-{portrait.seed}")
    back, ties = _hair_back(portrait, proportions, rng)
    front, edge = _hair_front(portrait, proportions, rng)
    dx = portrait.shift_x
    neck = np.array([(0.425, 0.6), (0.575, 0.6), (0.578, 0.78), (0.585, 0.84), (0.415, 0.84), (0.422, 0.78)])
    body = smooth_curve(
        [
            (0.42, 0.775),
            (0.34, 0.82),
            (0.2, 0.865),
            (0.1, 0.93),
            (0.06, 1.05),
            (0.94, 1.05),
            (0.9, 0.93),
            (0.8, 0.865),
            (0.66, 0.82),
            (0.58, 0.775),
            (0.5, 0.80),
        ],
        closed=True,
    )
    offset = np.array([dx, BODY_DOWN])
    return Geometry(
        frame=frame,
        proportions=proportions,
        face=frame(_face(proportions)),
        ears=[frame(ellipse(s * 1.02, 0.22, 0.16, 0.26)) for s in (-1, 1)],
        neck=neck + offset,
        body=body + offset,
        hair_back=[frame(p) for p in back],
        hair_front=frame(front),
        locks=[frame(p) for p in _locks(portrait, proportions)],
        fringe_line=frame(edge),
        tie_points=[frame([t])[0] for t in ties],
        rng=rng,
    )


def _face(proportions: Proportions) -> Points:
    j = proportions.jaw
    right = [(0.0, -1.2), (0.55, -1.08), (0.9, -0.65), (1.0, -0.05), (0.95, 0.4), (j, 0.86), (j * 0.5, 1.14)]
    chin = [(0.0, 1.22)]
    left = [(-u, v) for u, v in reversed(right[1:])]
    return smooth_curve(right + chin + left, closed=True)


def _dome(portrait: Portrait, proportions: Proportions, rng: random.Random) -> Points:
    """The outer edge of the hair over the top, from the left temple to the right one."""
    style = portrait.hair_style
    t = np.linspace(np.pi, 0, 15)
    wide, high = {"curly": (1.32, 1.42), "spiky": (1.16, 1.26)}.get(style, (1.15, 1.24))
    if proportions.strands:
        wide, high = wide + 0.03, high + 0.05
    u, v = wide * np.cos(t), -0.22 - high * np.sin(t)
    if style == "spiky":
        tips: list[tuple[float, float]] = []
        count = 8
        for i in range(count):
            a0, a1 = np.pi * (1 - i / count), np.pi * (1 - (i + 1) / count)
            mid = (a0 + a1) / 2 + 0.12 * portrait.side
            reach = 1.3 + 0.07 * (i % 2)
            tips.append((wide * np.cos(a0), -0.22 - high * np.sin(a0)))
            tips.append((wide * np.cos(mid) * reach, -0.22 - high * np.sin(mid) * reach))
        tips.append((wide, -0.22))
        return np.array(tips)
    if style == "curly":
        t = np.linspace(np.pi, 0, 73)
        bump = 1 + 0.055 * np.abs(np.sin(t * 6.5))
        return np.stack([wide * np.cos(t) * bump, -0.22 - high * np.sin(t) * bump], axis=1)
    return smooth_curve(np.stack([u, v], axis=1), steps=3)


def _zigzag(edge: Points, teeth: int, depth: float, side: int) -> Points:
    """Turn a smooth hair edge into pointed strands: curved teeth that hang along the edge."""
    position = np.linspace(0, len(edge) - 1, teeth * 2 + 1)
    base = np.stack([np.interp(position, np.arange(len(edge)), edge[:, k]) for k in range(2)], axis=1)
    out = [base[0]]
    for i in range(teeth):
        a, m, b = base[2 * i], base[2 * i + 1], base[2 * i + 2]
        depth_here = depth * float(np.clip((m[1] + 1.05) / 0.6, 0.2, 1.0))
        lean = 0.10 * side - 0.10 * m[0]
        tip = m + np.array([lean, depth_here * (1.0 if i % 2 == 0 else 0.7)])
        notch = b + np.array([0.0, -depth_here * 1.1]) if i < teeth - 1 else b
        start = a + np.array([0.0, -depth_here * 1.1]) if i > 0 else a
        bulge = np.array([0.05 * np.sign(lean + 1e-9), 0.0])
        out += [start * 0.4 + tip * 0.6 - bulge * 0.6, tip, tip * 0.45 + notch * 0.55 - bulge, notch]
    return np.array(out)


def _hair_front(portrait: Portrait, proportions: Proportions, rng: random.Random) -> tuple[Points, Points]:
    """The hair in front of the face, and the lower edge of its fringe."""
    dome = _dome(portrait, proportions, rng)
    s = portrait.side
    low = 0.1 if portrait.hair_style in ("short", "spiky", "bun", "ponytail") else 0.55
    right_in, left_in = (0.9, low - 0.1), (-0.9, low - 0.1)
    if portrait.fringe == "straight":
        edge = [(0.84, -0.3), (0.5, -0.24), (0.0, -0.22), (-0.5, -0.24), (-0.84, -0.3)]
        teeth, depth = 5, 0.24
    elif portrait.fringe == "side":
        edge = [(0.86, -0.12), (0.6, -0.36), (0.15, -0.62), (-0.45, -0.92), (-0.7, -0.5), (-0.87, -0.1)]
        teeth, depth = 5, 0.22
    elif portrait.fringe == "parted":
        edge = [(0.87, -0.05), (0.68, -0.42), (0.32, -0.78), (0.0, -1.02), (-0.32, -0.78), (-0.68, -0.42), (-0.87, -0.05)]
        teeth, depth = 6, 0.2
    else:
        edge = [(0.9, -0.3), (0.74, -0.68), (0.4, -0.88), (0.0, -0.94), (-0.4, -0.88), (-0.74, -0.68), (-0.9, -0.3)]
        teeth, depth = 0, 0.0
    line = smooth_curve(edge, steps=6)
    if portrait.fringe == "side" and s < 0:
        line = (line * [-1, 1])[::-1]
    shown = _zigzag(line, teeth, depth, s) if proportions.strands and teeth else line
    outer_right, outer_left = (dome[-1][0] + 0.0, low), (dome[0][0], low)
    if proportions.strands:
        # Pointed locks in front of the ears.
        right = smooth_curve([outer_right, (1.16, low + 0.3), (1.02, low + 0.62), (0.98, low + 0.3), right_in], steps=4)
        left = (
            (right * [-1, 1])[::-1]
            if portrait.hair_style != "spiky"
            else smooth_curve([left_in, (-0.98, low + 0.3), (-1.02, low + 0.62), (-1.16, low + 0.3), outer_left], steps=4)
        )
        return np.concatenate([dome, right, shown, left]), line
    polygon = np.concatenate([dome, [outer_right, right_in], shown, [left_in, outer_left]])
    return polygon, line


def _hair_back(portrait: Portrait, proportions: Proportions, rng: random.Random) -> tuple[list[Points], list[tuple[float, float]]]:
    """The hair behind the head, and where tails are tied."""
    style, s = portrait.hair_style, portrait.side
    cap = smooth_curve(
        [
            (0, -1.4),
            (0.8, -1.15),
            (1.16, -0.4),
            (1.14, 0.3),
            (0.95, 0.75),
            (0, 0.9),
            (-0.95, 0.75),
            (-1.14, 0.3),
            (-1.16, -0.4),
            (-0.8, -1.15),
        ],
        closed=True,
    )
    if style == "bob":
        half = [(0.0, -1.4), (0.85, -1.15), (1.24, -0.35), (1.36, 0.5), (1.3, 1.12), (0.9, 1.22), (0.45, 1.12)]
        return [smooth_curve(half + [(-u, v) for u, v in reversed(half[1:])], closed=True)], []
    if style == "long":
        half = [(0.0, -1.4), (0.85, -1.15), (1.24, -0.35), (1.36, 0.6), (1.42, 1.6), (1.38, 2.5), (0.9, 2.6)]
        return [smooth_curve(half + [(-u, v) for u, v in reversed(half[1:])], closed=True)], []
    if style == "curly":
        t = np.linspace(0, 2 * np.pi, 121)
        bump = 1 + 0.06 * np.abs(np.sin(t * 7))
        return [np.stack([1.42 * np.cos(t) * bump, -0.12 + 1.32 * np.sin(t) * bump], axis=1)], []
    if style == "ponytail":
        tail = smooth_curve(
            [
                (0.7, -1.2),
                (1.15, -1.35),
                (1.6, -0.95),
                (1.78, -0.2),
                (1.72, 0.7),
                (1.5, 1.5),
                (1.42, 0.9),
                (1.38, 0.1),
                (1.2, -0.4),
                (0.9, -0.7),
            ],
            closed=True,
        ) * [s, 1]
        return [tail, cap], [(0.92 * s, -1.0)]
    if style == "twin tails":
        right = smooth_curve(
            [
                (0.95, -0.75),
                (1.35, -0.85),
                (1.75, -0.35),
                (1.85, 0.5),
                (1.75, 1.4),
                (1.5, 2.2),
                (1.42, 1.5),
                (1.36, 0.7),
                (1.25, 0.0),
                (1.05, -0.4),
            ],
            closed=True,
        )
        return [right, right * [-1, 1], cap], [(1.1, -0.62), (-1.1, -0.62)]
    if style == "bun":
        return [ellipse(0.0, -1.62, 0.46, 0.42), cap], []
    return [cap], []


def _locks(portrait: Portrait, proportions: Proportions) -> list[Points]:
    """Hair that falls in front of the shoulders."""
    if portrait.hair_style == "long":
        right = smooth_curve(
            [(0.95, 0.1), (1.16, 0.1), (1.34, 0.9), (1.36, 1.7), (1.2, 2.45), (1.0, 1.9), (0.95, 1.2), (0.9, 0.6)], closed=True
        )
        return [right, right * [-1, 1]]
    if portrait.hair_style == "bob":
        right = smooth_curve([(0.92, 0.1), (1.16, 0.0), (1.3, 0.6), (1.2, 1.15), (0.98, 1.05), (0.92, 0.6)], closed=True)
        return [right, right * [-1, 1]]
    return []
