"""The demonstration's image grid: one row per portrait, figures below the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .measure import distance

if TYPE_CHECKING:
    from .case import Case

_CELL, _GAP, _TEXT = 256, 10, 20


def picture_grid(cases: list[Case], figures: Mapping[str, Any]) -> Image.Image:
    """Columns: source photo, base img2img, LoRA at 0.65, LoRA at 0.8, true anime rendering."""
    columns = ("source photo", "base, img2img 0.65", "LoRA, 0.65", "LoRA, 0.8", "true anime rendering")
    width = _GAP + len(columns) * (_CELL + _GAP)
    height = 2 * _GAP + _TEXT + len(cases) * (_CELL + _TEXT + _GAP) + 4 * _TEXT
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    title, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for i, text in enumerate(columns):
        draw.text((_GAP + i * (_CELL + _GAP), _GAP), text, fill="black", font=title)
    y = 2 * _GAP + _TEXT
    for case in cases:
        images = (case.source, case.base, case.lora_065, case.lora_080, case.truth)
        for i, image in enumerate(images):
            x = _GAP + i * (_CELL + _GAP)
            out.paste(image.resize((_CELL, _CELL), Image.Resampling.LANCZOS), (x, y))
            far = distance(image, case.truth, case.source)
            draw.text((x, y + _CELL + 2), f"distance {far:.2f}", fill=(90, 90, 90), font=small)
        y += _CELL + _TEXT + _GAP
    lines = (
        f"mean of {figures['portraits']} portraits: base {figures['distance_base']:.2f}, LoRA 0.65 {figures['distance_lora_065']:.2f}, "
        f"LoRA 0.8 {figures['distance_lora_080']:.2f}  (0: the true rendering, 1: as far from it as the photo)",
        f"style: base {figures['style_base']:.2f}, LoRA 0.65 {figures['style_065']:.2f}, LoRA 0.8 {figures['style_080']:.2f}  "
        f"(0: drawn as the true renderings are, 1: as the photos are)",
        f"colours of hair, skin and background: off by {100 * figures['attribute_error']:.1f} % of full scale",
        f"LoRA training: {figures['training_steps']} steps in {figures['training_seconds']:.0f} s",
    )
    for line in lines:
        draw.text((_GAP, y), line, fill="black", font=small)
        y += _TEXT
    return out
