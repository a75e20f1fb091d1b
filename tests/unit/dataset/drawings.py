"""Pictures for the tests: distinct, deterministic, quick to draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

FILES = Path(__file__).parent / "files"
RED, GREEN, BLUE, YELLOW = (200, 40, 40), (40, 180, 60), (30, 60, 200), (230, 220, 50)


def drawing(seed: int, size: tuple[int, int] = (160, 160)) -> Image.Image:
    """Ellipses at random: two seeds never look alike."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        w, h = rng.randrange(size[0] // 6, size[0] // 2), rng.randrange(size[1] // 6, size[1] // 2)
        draw.ellipse((x - w, y - h, x + w, y + h), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def folder_of(path: Path, count: int, size: tuple[int, int] = (160, 160), *, first: int = 0) -> Path:
    """A folder with ``count`` PNG drawings ``0.png``, ``1.png``, …"""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        drawing(i, size).save(path / f"{i}.png")
    return path


def quarters(image: Image.Image) -> Sequence[tuple[int, ...]]:
    """The colours in the middle of the four quarters, row by row."""
    w, h = image.size
    places = [(w // 4, h // 4), (3 * w // 4, h // 4), (w // 4, 3 * h // 4), (3 * w // 4, 3 * h // 4)]
    return [tuple(image.convert("RGB").getpixel(place)) for place in places]  # type: ignore[arg-type]


def close(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]], tolerance: int) -> bool:
    """Every channel of every colour differs by at most ``tolerance``."""
    return all(abs(x - y) <= tolerance for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
