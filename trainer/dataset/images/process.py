"""Make the PNG of the dataset from the bytes of one source image, independently of all other images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageColor

from ...config.prepare_sections import CleanSettings
from ...config.prepare_settings import PrepareSettings
from ...core.errors import UserError
from ...core.files.writing import write_atomic
from ...core.messages import File, Message
from .buckets import Fit, Size, fit
from .decode import DecodedImage, Rejected, decode_image, open_image
from .focus import content_box, crop_offset, find_head
from .signature import compute_signature
from .source_masks import UnusableMask, load_mask
from .unusable import reject_unusable

# increase it when the same source and settings give other pixels than before, so that cached results are made again
PIPELINE_VERSION = 1
PNG_LEVEL = 6  # zlib's default; it affects the bytes, not the pixels

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}

BELOW_BORDER = "top, below an empty border"
MASK_NOT_USED = "mask not used"
Upscaler = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class ProcessedImage:
    """The result for one source, and one line of the journal. ``file`` is empty and ``reason`` set for a rejected source."""

    key: str
    source_sha256: str
    reason: str = ""
    message: str = ""
    format: str = ""
    original: Size = (0, 0)
    signature: str = ""
    size: Size = (0, 0)
    crop_top_left: tuple[int, int] = (0, 0)
    crop_right: int | None = None
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    mask: str = ""
    mask_sha256: str = ""
    steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ProcessedImage:
        """The reverse of ``to_json``. Raises TypeError or ValueError for anything else."""
        pairs = {name: (int(data[name][0]), int(data[name][1])) for name in ("original", "size", "crop_top_left")}
        return cls(**{**data, **pairs, "steps": tuple(data["steps"])})


def processing_key(source_sha256: str, settings: PrepareSettings, is_regularisation: bool, source_mask: bytes = b"") -> str:
    """Hash of everything that determines a result: source, mask, and the settings that affect pixels or rejection."""
    relevant = settings.model_dump(
        mode="json",
        include={"resolution", "crop", "resample", "alpha", "background", "upscaler", "face_model", "buckets"},
    )
    if settings.shape == "auto" or (settings.shape == "buckets" and settings.buckets is None):
        relevant["shape"] = settings.shape
    if settings.crop == "face":
        relevant["without a face"] = "top"
    relevant["min_side"] = settings.clean.min_side
    relevant["max_megapixels"] = settings.clean.max_megapixels
    if source_mask:
        relevant["mask"] = hashlib.sha256(source_mask).hexdigest()
    if settings.clean.max_aspect != CleanSettings().max_aspect:
        relevant["max_aspect"] = settings.clean.max_aspect
    text = json.dumps([PIPELINE_VERSION, source_sha256, is_regularisation, relevant], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def process_image(
    data: bytes | Image.Image,
    *,
    key: str,
    source_sha256: str,
    target: Path,
    mask: Path,
    settings: PrepareSettings,
    upscaler: Upscaler | None,
    before_writing: Callable[[ProcessedImage], None],
    source_mask: bytes | str | None = None,
) -> ProcessedImage:
    """Decode, check, crop, resize and write ``target`` (and ``mask``). ``data``: the bytes of a file, or an image of an IMAGE batch.

    ``before_writing`` gets the result of an image that can be used before its files are written.
    ``source_mask``: the bytes of a mask beside the source, or a text that says why it cannot be read.
    An image that cannot be used gives a result with a ``reason``. Raises UserError when a file cannot be written.
    """
    found: dict[str, Any] = {"key": key, "source_sha256": source_sha256}
    try:
        image = open_image(data, settings.clean.max_megapixels) if isinstance(data, bytes) else data
        found["format"] = image.format or "IMAGE"
        decoded = decode_image(image)
        found["original"] = decoded.rgb.size
        if min(decoded.rgb.size) < settings.clean.min_side:
            raise Rejected("too small", f"{_size(decoded.rgb.size)} is smaller than {settings.clean.min_side} pixels")
        found["signature"] = compute_signature(flattened(decoded, settings))
        reject_unusable(decoded, settings)
        result = _finish(decoded, _mask(decoded, source_mask, settings), settings, upscaler)
    except Rejected as rejection:
        return ProcessedImage(**found, reason=rejection.reason, message=str(rejection))
    except MemoryError:
        return ProcessedImage(**found, reason="memory", message="not enough memory to decode it")
    png = _png(result.image)
    mask_png = _png(result.mask) if result.mask is not None else b""
    processed = ProcessedImage(
        **found,
        size=result.image.size,
        crop_top_left=result.crop_top_left,
        crop_right=result.crop_right,
        file=target.name,
        sha256=hashlib.sha256(png).hexdigest(),
        bytes=len(png),
        mask=mask.name if mask_png else "",
        mask_sha256=hashlib.sha256(mask_png).hexdigest() if mask_png else "",
        steps=tuple(result.steps),
    )
    try:
        before_writing(processed)
        write_atomic(target, png)
        if mask_png:
            write_atomic(mask, mask_png)
    except OSError as error:  # such as a full disk, with which all further images would fail, too
        raise UserError(
            Message(File(str(target)), f" cannot be written: {error.strerror or error}."),
            "Make room, or choose another output folder. Finished images are kept.",
            kind="dataset",
        ) from error
    return processed


def flattened(decoded: DecodedImage, settings: PrepareSettings) -> Image.Image:
    """The visible image, on its background; fully transparent pixels are not part of it."""
    return decoded.rgb if decoded.alpha is None else _on_background(decoded.rgb, decoded.alpha, settings.background)


@dataclass(frozen=True)
class _Result:
    image: Image.Image
    mask: Image.Image | None
    crop_top_left: tuple[int, int]
    crop_right: int
    steps: list[str]


def _mask(decoded: DecodedImage, data: bytes | str | None, settings: PrepareSettings) -> Image.Image | None:
    """The mask beside the source; None without one that can be used, which is noted in the steps."""
    if data is None:
        return None
    try:
        if isinstance(data, str):
            raise UnusableMask(data)
        mask = load_mask(data, decoded.rgb.size, settings.clean.max_megapixels)
    except UnusableMask as problem:
        decoded.steps.append(f"{MASK_NOT_USED}: it {problem}")
        return None
    if mask.getextrema()[1] == 0:
        raise Rejected("mask", "its mask is all black: nothing of the image would be trained")
    decoded.steps.append("mask of its own")
    return mask


def _finish(decoded: DecodedImage, mask: Image.Image | None, settings: PrepareSettings, upscaler: Upscaler | None) -> _Result:
    steps = list(decoded.steps)
    image, alpha = decoded.rgb, decoded.alpha
    if alpha is not None:
        image = _on_background(image, alpha, settings.background)
        steps.append(f"alpha onto {settings.background}" + (" and kept as mask" if settings.alpha == "mask" else ""))
    if settings.alpha != "mask":
        alpha = None
    if mask is not None:
        alpha = mask if alpha is None else ImageChops.multiply(alpha, mask)
    chosen = fit(image.size, settings)
    if min(chosen.target) < 8:
        raise Rejected("too small", f"{_size(image.size)} is smaller than one bucket step")
    if upscaler is not None and _grows(image.size, chosen):
        before = image.size
        image = upscaler(image).convert("RGB")
        steps.append(f"upscaled {_size(before)} to {_size(image.size)} by {settings.upscaler or 'the upscale model'}")
    resample = FILTERS[settings.resample]
    if settings.crop == "none" and chosen.target != chosen.resized:
        return _padded(image, alpha, chosen, settings, resample, steps)
    left, top, how = _offset(image, chosen, settings)
    box = _box_in_source(image.size, chosen, left, top)
    if chosen.target != chosen.resized:
        steps.append(f"crop {how}")
    if image.size != chosen.resized:
        steps.append(f"resize {_size(image.size)} to {_size(chosen.resized)} {settings.resample}")
    final = _resize(image, chosen.target, resample, box)
    mask = None
    if alpha is not None:
        scale = (alpha.width / image.width, alpha.height / image.height)
        mask = _resize(alpha, chosen.target, resample, (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]))
    return _Result(final, mask, (top, left), chosen.resized[0] - chosen.target[0] - left, steps)


def _padded(
    image: Image.Image, alpha: Image.Image | None, chosen: Fit, settings: PrepareSettings, resample: Image.Resampling, steps: list[str]
) -> _Result:
    """The whole image inside the target, without a crop; a mask excludes the border from training."""
    width, height = chosen.target
    scale = min(width / image.width, height / image.height)
    inner = (max(1, min(width, round(image.width * scale))), max(1, min(height, round(image.height * scale))))
    place = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    final = Image.new("RGB", chosen.target, ImageColor.getrgb(settings.background)[:3])
    final.paste(_resize(image, inner, resample, None), place)
    mask = None
    if inner != chosen.target or alpha is not None:
        mask = Image.new("L", chosen.target, 0)
        mask.paste(255 if alpha is None else _resize(alpha, inner, resample, None), (*place, place[0] + inner[0], place[1] + inner[1]))
    steps.append(f"resize {_size(image.size)} to {_size(inner)} {settings.resample}")
    if inner != chosen.target:
        steps.append(f"border to {_size(chosen.target)}, masked")
    return _Result(final, mask, (0, 0), 0, steps)


def _offset(image: Image.Image, chosen: Fit, settings: PrepareSettings) -> tuple[int, int, str]:
    """(left, top, how it was chosen) of the target in the scaled image."""
    spare = (chosen.resized[0] - chosen.target[0], chosen.resized[1] - chosen.target[1])
    if settings.crop in ("centre", "none") or spare == (0, 0):
        return spare[0] // 2, spare[1] // 2, "centre"
    heads = find_head(image, settings.face_model) if settings.crop == "face" else None
    content = content_box(image) if heads is None else None
    left, top = crop_offset(image.size, chosen.resized, chosen.target, heads, content)
    if heads is not None:
        return left, top, f"face ({heads.method}, confidence {heads.confidence:.2f})"
    how = BELOW_BORDER if top else "top"
    return left, top, f"{how}, no face found" if settings.crop == "face" else how


def _box_in_source(image: Size, chosen: Fit, left: int, top: int) -> tuple[float, float, float, float]:
    """The rectangle of the target in source pixels, so that one resize both crops and scales."""
    x, y = image[0] / chosen.resized[0], image[1] / chosen.resized[1]
    right, bottom = (left + chosen.target[0]) * x, (top + chosen.target[1]) * y
    return left * x, top * y, min(right, float(image[0])), min(bottom, float(image[1]))


def _resize(image: Image.Image, size: Size, resample: Image.Resampling, box: tuple[float, float, float, float] | None) -> Image.Image:
    whole = box is None or box == (0.0, 0.0, float(image.width), float(image.height))
    if whole and image.size == size:
        return image
    return image.resize(size, resample, box=box)


def _on_background(image: Image.Image, alpha: Image.Image, colour: str) -> Image.Image:
    background = Image.new("RGB", image.size, ImageColor.getrgb(colour)[:3])
    background.paste(image, mask=alpha)
    return background


def _grows(image: Size, chosen: Fit) -> bool:
    return chosen.resized[0] > image[0] or chosen.resized[1] > image[1]


def _png(image: Image.Image) -> bytes:
    # without metadata: time stamps or profiles would make equal images differ
    clean = image.copy()
    clean.info = {}
    buffer = io.BytesIO()
    clean.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
