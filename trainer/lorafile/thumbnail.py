"""Thumbnails in metadata: a picture as a data URL and back (modelspec.thumbnail)."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image, UnidentifiedImageError

SIDE = 256  # what model browsers show; about 15 KB as JPEG
_MAX_URL = 20_000_000
_MAX_PIXELS = 64_000_000


def to_data_url(image: Image.Image, side: int = SIDE) -> str:
    """``image`` shrunk to fit ``side`` x ``side`` pixels, as a JPEG data URL."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def from_data_url(url: str) -> Image.Image | None:
    """The picture in a data URL; None when it holds none that can be read."""
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or ";base64" not in head or len(url) > _MAX_URL:
        return None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        if image.width * image.height > _MAX_PIXELS:
            return None
        return image.convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
