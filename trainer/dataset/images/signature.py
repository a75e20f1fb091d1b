"""Signatures that copies of an image share: perceptual hashes of it, its mirror image and its crops, and a few colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16  # 256 bits: with 64, different drawn faces share a hash
COLOUR_SIDE = 4
COLOUR_LIMIT = 14.0  # mean difference of 8-bit values; JPEG and resizing stay below 5
_VERSION = "2"
_SAMPLES = 64  # side of the image that is transformed: four times that of the hash, as in imagehash.phash
_CROPS = (  # left, top, right, bottom, in shares of the side: undo a border of 3 % or a crop of 5 %, on all sides or on one
    (0.025, 0.025, 0.025, 0.025), (0.0283, 0.0283, 0.0283, 0.0283), (0.05, 0.05, 0.05, 0.05),
    (0.05, 0, 0, 0), (0, 0.05, 0, 0), (0, 0, 0.05, 0), (0, 0, 0, 0.05),
)  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """Perceptual hashes (256 bits) of an image, its mirror image and its crops, and ``colours``, a 4x4 RGB miniature."""

    phash: int
    mirrored: int
    crops: tuple[int, ...]
    colours: bytes


def compute_signature(image: Image.Image) -> str:
    """The signature of an RGB image as text: version, hashes (64 hex digits each) and miniature, with colons between them."""
    step = min(image.size) // 256
    reduced = image.reduce(step) if step > 1 else image
    grey = reduced.convert("L")
    width, height = grey.size
    frequencies = _frequencies(grey, None)
    mirror_signs = np.where(np.arange(HASH_SIDE) % 2, -1, 1)  # mirroring flips the sign of every second horizontal frequency
    boxes = [(width * left, height * top, width * (1 - right), height * (1 - bottom)) for left, top, right, bottom in _CROPS]
    hashes = [
        str(imagehash.phash(grey, hash_size=HASH_SIDE)),
        _bits(frequencies * mirror_signs),
        *(_bits(_frequencies(grey, box)) for box in boxes),
    ]
    colours = reduced.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX)
    return f"{_VERSION}:{'.'.join(hashes)}:{colours.tobytes().hex()}"


def parse_signature(text: str | None) -> Signature | None:
    """The signature in ``text``; None for other text, such as a signature of an earlier version."""
    version, _, rest = (text or "").partition(":")
    hashes, _, colours = rest.partition(":")
    parts = hashes.split(".")
    if version != _VERSION or len(parts) != 2 + len(_CROPS):
        return None
    try:
        phash, mirrored, *crops = (int(part, 16) for part in parts)
        return Signature(phash, mirrored, tuple(crops), bytes.fromhex(colours))
    except ValueError:
        return None


class SimilarityIndex:
    """Finds images that look alike without comparing all pairs.

    Two hashes that differ in at most ``distance`` bits agree completely in at least one of ``distance + 1`` bands
    (pigeonhole principle), so only images that share a band are compared.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        bits = HASH_SIDE * HASH_SIDE
        edges = [round(i * bits / (distance + 1)) for i in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]
        self._signatures: list[Signature] = []

    def add(self, signature: Signature) -> int:
        """Add an image and return its number, counted from 0."""
        number = len(self._signatures)
        for table, key in zip(self._tables, self._keys(signature.phash), strict=True):
            table.setdefault(key, []).append(number)
        self._signatures.append(signature)
        return number

    def similar(self, signature: Signature) -> Iterator[int]:
        """Numbers of images with a similar hash and similar colours: the hash is of the grey image, and recoloured drawings differ."""
        return (number for number in self._near(signature.phash) if _close(signature.colours, self._signatures[number].colours))

    def mirrored(self, signature: Signature) -> Iterator[int]:
        """Numbers of images that look like the mirror image."""
        colours = np.frombuffer(signature.colours, np.uint8).reshape(COLOUR_SIDE, COLOUR_SIDE, 3)[:, ::-1].tobytes()
        return (number for number in self._near(signature.mirrored) if _close(colours, self._signatures[number].colours))

    def cropped(self, signature: Signature) -> Iterator[int]:
        """Numbers of images that look like a crop of this one."""
        return (number for crop in signature.crops for number in self._near(crop))

    def _keys(self, phash: int) -> list[int]:
        return [(phash >> low) & mask for low, mask in self._bands]

    def _near(self, phash: int) -> Iterator[int]:
        seen: set[int] = set()
        for table, key in zip(self._tables, self._keys(phash), strict=True):
            for number in table.get(key, ()):
                if number not in seen:
                    seen.add(number)
                    if (phash ^ self._signatures[number].phash).bit_count() <= self._distance:
                        yield number


def are_similar(a: str | None, b: str | None, distance: int) -> bool:
    """Whether two signatures have similar colours and hashes that differ in at most ``distance`` bits."""
    first, second = parse_signature(a), parse_signature(b)
    if first is None or second is None:
        return False
    return (first.phash ^ second.phash).bit_count() <= distance and _close(first.colours, second.colours)


def _frequencies(grey: Image.Image, box: tuple[float, float, float, float] | None) -> NDArray[np.float64]:
    """The lowest frequencies of the discrete cosine transform of the image at 64x64 pixels, as in imagehash.phash."""
    # crops use a filter that is three times as fast; on drawings, hashes of the same crop stay within 18 of 256 bits with both
    resample = Image.Resampling.LANCZOS if box is None else Image.Resampling.HAMMING
    pixels = np.asarray(grey.resize((_SAMPLES, _SAMPLES), resample, box=box), dtype=np.float64)
    return _transform() @ pixels @ _transform().T


@cache
def _transform() -> NDArray[np.float64]:
    frequency, sample = np.ogrid[:HASH_SIDE, :_SAMPLES]
    waves: NDArray[np.float64] = 2 * np.cos(np.pi * frequency * (2 * sample + 1) / (2 * _SAMPLES))
    return waves


def _bits(frequencies: NDArray[np.float64]) -> str:
    return np.packbits(frequencies > np.median(frequencies)).tobytes().hex()


def _close(a: bytes, b: bytes) -> bool:
    difference = np.frombuffer(a, np.uint8).astype(np.int16) - np.frombuffer(b, np.uint8)
    return float(np.abs(difference).mean()) <= COLOUR_LIMIT
