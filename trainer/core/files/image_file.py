"""The only place that opens image files, with a fixed list of formats and with size limits.

By default Pillow tries every format it knows, and for some (EPS) it starts another program on the contents of the file.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .reading import read_regular

with suppress(ImportError):  # Pillow reads AVIF by itself since 11.3
    import pillow_avif  # noqa: F401
Image.init()
# the documented formats, and others that Pillow reads safely; never PostScript, WMF or video
_ALLOWED = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM", "TGA", "JPEG2000", "ICO", "QOI")
IMAGE_FORMATS = tuple(name for name in _ALLOWED if name in Image.OPEN)

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000


class ImageRejected(OSError):
    """The file is not an image in one of ``IMAGE_FORMATS``, is damaged, or is too large; the message says which."""


def identify(data: bytes) -> Image.Image:
    """The image in ``data`` without decoding its pixels. Raises Pillow's many exceptions; ``load_image`` raises one."""
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)  # noqa: TID251 - the one call that names the formats


def load_image(
    source: Path | str | bytes,
    mode: str | None = "RGB",
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    draft: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode the first frame of the image in ``source`` (a path or the bytes) and convert it to ``mode``; None keeps the image's mode.

    The size is checked before decoding. ``draft`` lets a JPEG be decoded smaller, but not below this width and height.

    Raises ImageRejected, an OSError, for anything that cannot be read, and other OSErrors if the file is missing or cannot be opened.
    """
    data = source if isinstance(source, bytes) else read_regular(Path(source), max_bytes)
    if len(data) > max_bytes:
        raise ImageRejected(f"it takes {len(data) >> 20} MB, more than {max_bytes >> 20}")
    try:
        image = identify(data)
        if image.width * image.height > max_pixels:
            raise ImageRejected(f"{image.width}x{image.height} is more than {max_pixels / 1e6:.0f} megapixels")
        if draft is not None:
            image.draft(None, draft)
        image.load()
        return image if mode is None else image.convert(mode)
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected("it is not an image in a supported format") from None
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"it is too large: {error}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, ...
        raise ImageRejected(f"the image is damaged: {error or type(error).__name__}") from None
