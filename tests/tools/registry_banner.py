"""Writes docs/images/banner.jpg for ComfyUI's registry, which shows banners of 21:9: ``python -m tests.tools.registry_banner``.

The photos and what the LoRA makes of them are those of ``python run.py demo`` in docs/images/demo-grid.png.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = (1680, 720)
_BACKGROUND, _INK, _QUIET = "#17191f", "#ffffff", "#b6bdc9"
_TILE, _GAP = 336, 12
_PHOTO, _LORA = 10, 542  # left edges of columns in the grid, whose tiles have 256 pixels
_PORTRAITS = (40, 326, 1184)  # top edges of the rows that are shown


def banner(grid: Image.Image, icon: Image.Image) -> Image.Image:
    """Name and purpose beside three photos, each above the same portrait with the LoRA."""
    image = Image.new("RGB", SIZE, _BACKGROUND)
    drawn = ImageDraw.Draw(image)
    edge = (SIZE[1] - 2 * _TILE - _GAP) // 2
    image.paste(icon.resize((190, 190), Image.Resampling.LANCZOS), (48, 120), icon.resize((190, 190)).getchannel("A"))
    drawn.text((48, 350), "AnimeLoRA", _INK, _font(84, bold=True))
    for line, text in enumerate(("Train LoRAs on your own images,", "compare epochs, and turn photos", "into anime – in ComfyUI.")):
        drawn.text((48, 468 + 44 * line), text, _QUIET, _font(30))
    for column, top in enumerate(_PORTRAITS):
        left = SIZE[0] - edge - (len(_PORTRAITS) - column) * (_TILE + _GAP) + _GAP
        for row, source in enumerate((_PHOTO, _LORA)):
            tile = grid.crop((source, top, source + 256, top + 256)).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            image.paste(tile, (left, edge + row * (_TILE + _GAP)))
    return image


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)


if __name__ == "__main__":
    banner(Image.open(IMAGES / "demo-grid.png").convert("RGB"), Image.open(IMAGES / "icon.png").convert("RGBA")).save(
        IMAGES / "banner.jpg", quality=88, optimize=True
    )
