"""Decode any image file to 8-bit sRGB and an optional alpha channel, turned the right way up."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ...core.files.image_file import identify
from ...core.messages import DatasetSetting, Message

EXTENSIONS = frozenset(
    (
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif",
        ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".ico", ".qoi",
    )
)  # fmt: skip


_ORIENTATION = 0x0112  # EXIF's tag, with its values (CIPA DC-008, 4.6.5.1.6)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Rejected(Exception):
    """An image that cannot be used. ``reason`` is a short word that programs may rely on, the message explains it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class DecodedImage:
    """``rgb``: mode RGB. ``alpha``: mode L, None when every pixel is opaque. ``steps``: what was done, for the manifest."""

    rgb: Image.Image
    alpha: Image.Image | None
    format: str
    steps: list[str] = field(default_factory=list)


def open_image(data: bytes, max_megapixels: float) -> Image.Image:
    """Open an image without decoding its pixels. Raises Rejected for other files and for decompression bombs."""
    try:
        image = identify(data)
    except UnidentifiedImageError:
        raise Rejected("unreadable", _what_it_is(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected("bomb", f"decompression bomb: {error}") from None
    except Exception as error:  # broken headers raise nearly anything
        raise Rejected("unreadable", f"the file is damaged: {error or type(error).__name__}") from None
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise Rejected(
            "too large",
            Message(
                f"{image.width}x{image.height} is {megapixels:.0f} megapixels, more than {max_megapixels:g}: make it smaller, or raise ",
                DatasetSetting("clean.max_megapixels"),
                " (to 178 at most)",
            ),
        )
    return image


def decode_image(image: Image.Image) -> DecodedImage:
    """Decode the first frame. Raises Rejected when the pixel data is cut off or damaged."""
    steps: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        steps.append("first frame")
    try:
        image.load()
        name = image.format or "image"
        turned = _turned(image, steps)
        rgb, alpha = _split(turned, name, steps)
    except Rejected:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise Rejected("truncated", f"the image is cut off or damaged: {error or type(error).__name__}") from None
    return DecodedImage(rgb, alpha, name, steps)


def _turned(image: Image.Image, steps: list[str]) -> Image.Image:
    """The image turned by its EXIF orientation; unchanged when the EXIF data is damaged, which does not affect the pixels."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # the parser raises SyntaxError, struct.error, ValueError, ...
        steps.append("unreadable EXIF ignored")
        return image
    if orientation not in _TURNS:
        return image
    steps.append("exif orientation")
    return image.transpose(_TURNS[orientation])


def _split(image: Image.Image, file_format: str, steps: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """(image in RGB, alpha channel)."""
    profile = image.info.get("icc_profile")
    if image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if image.mode == "PA" or (image.mode in ("P", "L", "RGB", "1") and "transparency" in image.info):
        image = image.convert("RGBA")
        steps.append("transparent colour")
    alpha: Image.Image | None = None
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        if alpha.getextrema() == (255, 255):
            alpha = None
        image = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
    if image.mode == "RGB" and not profile:
        return image, alpha
    if image.mode not in ("RGB", "L"):
        steps.append(f"from {image.mode}")
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_8_bit(image, sixteen_bit=file_format in ("PNG", "PPM"))
    elif image.mode in ("P", "1", "HSV"):
        image = image.convert("RGB")
    if profile:
        converted = _to_srgb(image, profile)
        if converted is not None:
            if converted is not image:
                steps.append("colour profile to sRGB")
            image = converted
        else:
            steps.append("unusable colour profile ignored")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    return (image if image.mode == "RGB" else image.convert("RGB")), alpha


def _deep_to_8_bit(image: Image.Image, *, sixteen_bit: bool) -> Image.Image:
    """16-bit, 32-bit and float grey scaled to 8 bit; Pillow's own conversion clips at 255."""
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or (image.mode == "I" and sixteen_bit):
        scale = 255 / 65535
    elif image.mode == "F" and top <= 1.0:
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    elif top <= 65535:
        scale = 255 / 65535
    else:
        scale = 255 / top
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))


_transforms = threading.local()  # one set for each thread, because an lcms transform has a pixel cache


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB; the same object when it is sRGB already; None when the profile cannot be used."""
    cache: dict[tuple[bytes, str], ImageCms.ImageCmsTransform | bool | None] = _transforms.__dict__.setdefault("cache", {})
    key = (profile, image.mode)
    if key not in cache:
        if len(cache) > 32:
            cache.clear()
        cache[key] = _make_transform(profile, image.mode)
    transform = cache[key]
    if transform is None:
        return None
    if isinstance(transform, bool):
        return image
    try:
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        return None


def _make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | bool | None:
    """True: already sRGB. None: the profile is damaged, or for another kind of image."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return True
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


_SIGNS = (
    (b"<!DOCTYPE", "a web page"), (b"<html", "a web page"), (b"<?xml", "an XML or SVG file"), (b"<svg", "an SVG file"),
    (b"%PDF", "a PDF file"), (b"PK\x03\x04", "a zip archive"), (b"Rar!", "a RAR archive"), (b"8BPS", "a Photoshop file"),
    (b"\x1aE\xdf\xa3", "a video"), (b"{", "a JSON file"), (b"version https://git-lfs", "a Git LFS pointer, not the image itself"),
)  # fmt: skip


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty"
    start = data[:64].lstrip()
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "a HEIC photo; export it as JPEG or PNG"
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        return "a video, not an image"
    if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
        return "a JPEG XL file; export it as PNG"
    for sign, name in _SIGNS:
        if start.startswith(sign) or start.lower().startswith(sign.lower()):
            return f"not an image but {name}"
    return "not an image that can be read"
