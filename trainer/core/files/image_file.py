"""The only place that opens image files, with a fixed list of formats and with size limits.

By default Pillow tries every format it knows, and for some (EPS) it starts another program on the contents of the file.
"""

from __future__ import annotations

import io
import struct
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
# formats whose decoders need no more memory than the size in the header; model browsers show no others
PREVIEW_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
_MAX_SCANS = 500  # of a progressive JPEG, which has about ten; decoding takes time for each of them
_SCAN = b"\xff\xda"  # start of a scan; inside image data, 0xFF is followed by 0x00 or a restart marker
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_ICON = b"\0\0\1\0"
_LARGEST_ICON = 1024  # pixels a side; one larger than 256 is listed as 256
_SMALL_TILE = 2048  # pixels a side; writers use 128 to 512


class ImageRejected(OSError):
    """The file is not an image in one of ``IMAGE_FORMATS``, is damaged, or is too large; the message says which."""


def identify(data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """The image in ``data`` without decoding its pixels.

    Raises ImageRejected when decoding would take far more memory or time than its size suggests, and Pillow's many exceptions;
    ``load_image`` raises one.
    """
    if data.startswith(_ICON):  # Pillow decodes icons when it opens them
        _require_small_icons(data)
    image = Image.open(io.BytesIO(data), formats=formats)  # noqa: TID251 - the one call that names the formats
    if image.format in ("JPEG", "MPO"):
        _require_few_scans(data)
    elif image.format == "TIFF":
        _require_fitting_tiles(image)
    return image


def load_image(
    source: Path | str | bytes,
    mode: str | None = "RGB",
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    draft: tuple[int, int] | None = None,
    formats: tuple[str, ...] = IMAGE_FORMATS,
) -> Image.Image:
    """Decode the first frame of the image in ``source`` (a path or the bytes) and convert it to ``mode``; None keeps the image's mode.

    The size is checked before decoding. ``draft`` lets a JPEG be decoded smaller, but not below this width and height.

    Raises ImageRejected, an OSError, for anything that cannot be read, and other OSErrors if the file is missing or cannot be opened.
    """
    data = source if isinstance(source, bytes) else read_regular(Path(source), max_bytes)
    if len(data) > max_bytes:
        raise ImageRejected(f"it takes {len(data) >> 20} MB, more than {max_bytes >> 20}")
    try:
        image = identify(data, formats)
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


def _require_few_scans(data: bytes) -> None:
    if (scans := data.count(_SCAN)) > _MAX_SCANS:
        raise ImageRejected(f"a JPEG with {scans:,} scans takes very long to decode")


def _require_fitting_tiles(image: Image.Image) -> None:
    """A tile is decoded whole, even where the image covers a corner of it."""
    tags = getattr(image, "tag_v2", {})
    width, length = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width * length > max(4 * image.width * image.height, _SMALL_TILE**2):
        raise ImageRejected(f"its tiles of {width}x{length} are far larger than the image of {image.width}x{image.height}")


def _require_small_icons(data: bytes) -> None:
    """An icon file lists sizes of at most 256 pixels, but each image in it is a PNG or BMP with a size of its own."""
    for place in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        start = int.from_bytes(data[place + 12 : place + 16], "little")
        width, height = _size_in_icon(data[start : start + 24])
        if abs(width * height) > 2 * _LARGEST_ICON**2:  # a BMP has twice the height, for its mask
            raise ImageRejected(f"an icon of {width}x{abs(height)} pixels is too large")


def _size_in_icon(header: bytes) -> tuple[int, int]:
    """(width, height) in the first 24 bytes of a PNG, or of a BMP without its file header."""
    if len(header) < 24:
        return 0, 0
    form, begin = (">II", 16) if header.startswith(b"\x89PNG") else ("<HH", 4) if header[0] == 12 else ("<ii", 4)
    width, height = struct.unpack_from(form, header, begin)
    return width, height
