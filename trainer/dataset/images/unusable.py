"""Images from which nothing can be learnt: they are left out by name."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from ..settings import PrepareSettings
from .decode import DecodedImage, Rejected

_ONE_COLOUR = 8  # levels of 255: what JPEG makes of one colour


def reject_unusable(picture: DecodedImage, settings: PrepareSettings) -> None:
    """Raise Rejected for an image of one colour, one that nothing is seen of on the background, and a strip."""
    width, height = picture.rgb.size
    aspect = max(width / height, height / width)
    if aspect > settings.clean.max_aspect:
        raise Rejected(
            "strip", f"{width}x{height} is {aspect:.0f} times as long as wide, more than {settings.clean.max_aspect:g}: cut it into parts"
        )
    if picture.alpha is None:
        if _is_one_colour(picture.rgb):
            raise Rejected("blank", "it has only one colour")
        return
    if picture.alpha.getextrema()[1] == 0:
        raise Rejected("blank", "it is fully transparent")
    shown = Image.new("RGB", picture.rgb.size, ImageColor.getrgb(settings.background)[:3])
    shown.paste(picture.rgb, mask=picture.alpha)
    if _is_one_colour(shown):
        raise Rejected("blank", f"nothing of it is seen on the background {settings.background}: choose another background")


def _is_one_colour(image: Image.Image) -> bool:
    pixels = np.asarray(image)  # uint8
    return int((pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))).max()) <= _ONE_COLOUR
