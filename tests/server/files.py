"""Images and models that tests put into a server's folders."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

TINY = "tiny-sd15.safetensors"
FULL = "random-sd15.safetensors"


def portrait(size: int, seed: int) -> Image.Image:
    """A face of ellipses on a gradient, varied enough that Dataset Prep does not reject it."""
    picture = Image.linear_gradient("L").resize((size, size)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    hue = (60 + 45 * seed) % 256
    pen.rectangle((0, 0, size // 3 + 5 * seed, size), fill=(hue, 90, 200 - hue // 2))
    pen.ellipse((size * 0.2, size * 0.1, size * 0.8, size * 0.95), fill=(235, 200 - 9 * seed, 170))
    pen.pieslice((size * 0.15, size * 0.02, size * 0.85, size * 0.7), 180, 360 - 20 * (seed % 4), fill=(hue, 40 + 13 * seed, 60))
    for side in (0.37, 0.63):
        pen.ellipse((size * (side - 0.06), size * 0.45, size * (side + 0.06), size * 0.57), fill="white", outline="black")
        pen.ellipse((size * (side - 0.03), size * 0.48, size * (side + 0.03), size * 0.55), fill=(20, 60 + 15 * seed, 90))
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def link(source: Path, target: Path) -> None:
    """Link ``target`` to ``source``, which may be 2 GB."""
    try:
        target.symlink_to(source)
    except OSError:
        os.link(source, target)
