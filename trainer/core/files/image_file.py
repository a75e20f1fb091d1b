"""Image files that somebody else made: the only place that opens them, with named formats and limits.

Pillow left to itself tries every format that it knows, and for some of them (EPS) it starts another program on the file's contents.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .reading import read_regular

with suppress(ImportError):  # Pillow itself reads AVIF since 11.3
    import pillow_avif  # noqa: F401
Image.init()
# the formats that the pack promises, and those that Pillow reads safely beside them; never PostScript, WMF or video
_WANTED = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM", "TGA", "JPEG2000", "ICO", "QOI")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000


class ImageRefused(OSError):
    """A file that is no image in one of ``FORMATS``, is damaged, or is larger than allowed. The message says which."""


def identify(data: bytes) -> Image.Image:
    """The image in ``data``, its pixels not decoded yet. Raises what Pillow raises; ``load_image`` has one exception for all."""
    return Image.open(io.BytesIO(data), formats=FORMATS)  # noqa: TID251 - the one call that names the formats


def load_image(
    source: Path | str | bytes,
    mode: str | None = "RGB",
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    draft: tuple[int, int] | None = None,
) -> Image.Image:
    """The first frame of the image in ``source`` (a path or the bytes), decoded and converted to ``mode``; None keeps its own mode.

    Size is checked before the pixels are decoded. ``draft``: a JPEG may be decoded smaller, but not below this width and height. Raises
    ImageRefused, an OSError, for everything that cannot be read; other OSErrors when the file is missing or may not be opened.
    """
    data = source if isinstance(source, bytes) else read_regular(Path(source), max_bytes)
    if len(data) > max_bytes:
        raise ImageRefused(f"it takes {len(data) >> 20} MB, more than {max_bytes >> 20}")
    try:
        image = identify(data)
        if image.width * image.height > max_pixels:
            raise ImageRefused(f"{image.width}x{image.height} is more than {max_pixels / 1e6:.0f} megapixels")
        if draft is not None:
            image.draft(None, draft)
        image.load()
        return image if mode is None else image.convert(mode)
    except ImageRefused:
        raise
    except UnidentifiedImageError:
        raise ImageRefused("it is no image in a format that is read") from None
    except Image.DecompressionBombError as error:
        raise ImageRefused(f"it is too large: {error}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, ...
        raise ImageRefused(f"the image is damaged: {error or type(error).__name__}") from None
