"""Colours and lines of cel animation: two tones and dark outlines."""

from __future__ import annotations

from .canvas import Colour, mix

INK: Colour = (42, 28, 44)
LINE = 0.0115
"""Width of an outline in image widths: 1.5 pixels at 128."""


def shadow(rgb: Colour) -> Colour:
    """The darker of a cel's two tones: darker, more saturated and a little towards violet."""
    r, g, b = rgb
    return mix((round(r * 0.72), round(g * 0.64), round(b * 0.74)), (90, 60, 130), 0.10)


def vivid(rgb: Colour, amount: float = 0.18) -> Colour:
    """Raise a colour's saturation, as painted animation does."""
    grey = round(sum(rgb) / 3)
    r, g, b = (min(255, max(0, round(grey + (c - grey) * (1 + amount) + 4))) for c in rgb)
    return (r, g, b)
