"""Thumbnails in metadata (modelspec.thumbnail): from an image to a data URL and back."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from ..core.files.image_file import PREVIEW_FORMATS, load_image

SIDE = 256  # pixels, as model browsers show; about 15 KB as JPEG
_MAX_URL = 20_000_000
_MAX_PIXELS = 4096 * 4096


def to_data_url(image: Image.Image, side: int = SIDE) -> str:
    """``image``, reduced to fit ``side`` x ``side`` pixels, as a JPEG data URL."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def from_data_url(url: str) -> Image.Image | None:
    """The image in a data URL; None when it holds no readable image."""
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or ";base64" not in head or len(url) > _MAX_URL:
        return None
    try:
        image = base64.b64decode(data, validate=True)
        return load_image(image, max_bytes=_MAX_URL, max_pixels=_MAX_PIXELS, draft=(2 * SIDE, 2 * SIDE), formats=PREVIEW_FORMATS)
    except (binascii.Error, OSError, ValueError):
        return None
