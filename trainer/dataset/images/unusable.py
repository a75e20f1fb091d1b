"""Reject images from which nothing can be learned."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageColor

from ...config.prepare_settings import PrepareSettings
from .decode import DecodedImage, Rejected

_ONE_COLOUR = 8  # 8-bit values by which JPEG changes a single colour


def reject_unusable(decoded: DecodedImage, settings: PrepareSettings) -> None:
    """Raise Rejected for an image of one colour, an image that is invisible on the background, and a strip."""
    width, height = decoded.rgb.size
    aspect = max(width / height, height / width)
    if aspect > settings.clean.max_aspect:
        raise Rejected(
            "strip", f"{width}x{height} is {aspect:.0f} times as long as wide, more than {settings.clean.max_aspect:g}: cut it into parts"
        )
    if decoded.alpha is None:
        if _is_one_colour(decoded.rgb):
            raise Rejected("blank", "it has only one colour")
        return
    if decoded.alpha.getextrema()[1] == 0:
        raise Rejected("blank", "it is fully transparent")
    flat = Image.new("RGB", decoded.rgb.size, ImageColor.getrgb(settings.background)[:3])
    flat.paste(decoded.rgb, mask=decoded.alpha)
    if _is_one_colour(flat):
        raise Rejected("blank", f"it is invisible on the background {settings.background}: choose another background")


def _is_one_colour(image: Image.Image) -> bool:
    # one channel after the other, because the first one shows it for nearly every image; an order of magnitude faster than numpy
    extrema: Any = (image.getchannel(band).getextrema() for band in image.getbands())
    return all(highest - lowest <= _ONE_COLOUR for lowest, highest in extrema)
