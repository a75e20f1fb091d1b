"""Draw a portrait in any style, and arrange images in a sheet."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from . import render_anime, render_flat, render_pencil, render_photo
from .portraits import Portrait

_RENDERERS: dict[str, Callable[[Portrait, int], Image.Image]] = {
    "photo": render_photo.render,
    "flat": render_flat.render,
    "pencil": render_pencil.render,
    "anime": render_anime.render,
}


def render(portrait: Portrait, style: str, size: int = 128) -> Image.Image:
    """Draw a portrait in one of :data:`demo.drawing.portraits.STYLES`; RGB, ``size`` pixels square (128 or more).

    The result depends on nothing but the arguments. Raises ``ValueError`` for an unknown style.
    """
    if style not in _RENDERERS:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(_RENDERERS)}")
    if size < 32:
        raise ValueError(f"size {size} is too small to draw a face; use 128 or more")
    return _RENDERERS[style](portrait, size)


def sheet(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Arrange equally large images in rows on white."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    out = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for j, row in enumerate(rows):
        for i, image in enumerate(row):
            out.paste(image, (gap + i * (width + gap), gap + j * (height + gap)))
    return out
