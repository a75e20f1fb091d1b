"""What two copies of one picture have in common: perceptual hashes, also mirrored and cropped, and a few colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16  # 256 bits: 64 are too few to tell drawn faces apart
COLOUR_SIDE = 4
COLOUR_LIMIT = 14.0  # mean difference of 8-bit values; JPEG and resizing stay below 5
_VERSION = "2"
_SAMPLES = 64  # a side of the image that is transformed: imagehash.phash's four times the hash
_CROPS = (  # left, top, right, bottom, in shares of the side: a crop of 5 % or a border of 3 % undone, on all sides or on one
    (0.025, 0.025, 0.025, 0.025), (0.0283, 0.0283, 0.0283, 0.0283), (0.05, 0.05, 0.05, 0.05),
    (0.05, 0, 0, 0), (0, 0.05, 0, 0), (0, 0, 0.05, 0), (0, 0, 0, 0.05),
)  # fmt: skip


@dataclass(frozen=True)
class Looks:
    """A signature, read: the hash, that of the mirrored image, those of its crops, and a 4x4 RGB miniature."""

    whole: int
    mirrored: int
    crops: tuple[int, ...]
    colours: bytes


def signature(image: Image.Image) -> str:
    """A version, the hashes (64 hex digits each) of the image, its mirror image and its crops, and the miniature, between colons."""
    step = min(image.size) // 128
    small = image.reduce(step) if step > 1 else image
    grey = (image.reduce(step // 2) if step > 3 else image).convert("L")
    width, height = grey.size
    whole = _frequencies(grey, None)
    signs = np.where(np.arange(HASH_SIDE) % 2, -1, 1)  # of a mirrored image, every other frequency across has the other sign
    boxes = [(width * left, height * top, width * (1 - right), height * (1 - bottom)) for left, top, right, bottom in _CROPS]
    hashes = [str(imagehash.phash(grey, hash_size=HASH_SIDE)), _bits(whole * signs), *(_bits(_frequencies(grey, box)) for box in boxes)]
    colours = small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX)
    return f"{_VERSION}:{'.'.join(hashes)}:{colours.tobytes().hex()}"


def read_signature(text: str | None) -> Looks | None:
    """None for what an earlier version wrote."""
    version, _, rest = (text or "").partition(":")
    hashes, _, colours = rest.partition(":")
    parts = hashes.split(".")
    if version != _VERSION or len(parts) != 2 + len(_CROPS):
        return None
    try:
        whole, mirrored, *crops = (int(part, 16) for part in parts)
        return Looks(whole, mirrored, tuple(crops), bytes.fromhex(colours))
    except ValueError:
        return None


class NearDuplicates:
    """Finds images that look like another one, among any number, without comparing with each.

    Two hashes that differ in at most ``distance`` bits agree completely in at least one of ``distance + 1`` bands
    (pigeonhole), so only images that share a band are compared.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        bits = HASH_SIDE * HASH_SIDE
        edges = [round(i * bits / (distance + 1)) for i in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]
        self._looks: list[Looks] = []

    def add(self, looks: Looks) -> int:
        """Remember an image; its number, from 0."""
        number = len(self._looks)
        for table, key in zip(self._tables, self._keys(looks.whole), strict=True):
            table.setdefault(key, []).append(number)
        self._looks.append(looks)
        return number

    def alike(self, looks: Looks) -> Iterator[int]:
        """Numbers of images with about this hash and these colours: grey hashes ignore colour, and a re-coloured drawing is another one."""
        return (number for number in self._near(looks.whole) if _close(looks.colours, self._looks[number].colours))

    def mirrored(self, looks: Looks) -> Iterator[int]:
        """Numbers of images that look like the mirror image."""
        colours = np.frombuffer(looks.colours, np.uint8).reshape(COLOUR_SIDE, COLOUR_SIDE, 3)[:, ::-1].tobytes()
        return (number for number in self._near(looks.mirrored) if _close(colours, self._looks[number].colours))

    def cropped(self, looks: Looks) -> Iterator[int]:
        """Numbers of images that look like this one without some percent of its edge."""
        return (number for crop in looks.crops for number in self._near(crop))

    def _keys(self, bits: int) -> list[int]:
        return [(bits >> low) & mask for low, mask in self._bands]

    def _near(self, bits: int) -> Iterator[int]:
        seen: set[int] = set()
        for table, key in zip(self._tables, self._keys(bits), strict=True):
            for number in table.get(key, ()):
                if number not in seen:
                    seen.add(number)
                    if (bits ^ self._looks[number].whole).bit_count() <= self._distance:
                        yield number


def alike(a: str | None, b: str | None, distance: int) -> bool:
    """Whether two signatures are those of one picture, within ``distance`` bits of the hash."""
    first, second = read_signature(a), read_signature(b)
    if first is None or second is None:
        return False
    return (first.whole ^ second.whole).bit_count() <= distance and _close(first.colours, second.colours)


def _frequencies(grey: Image.Image, box: tuple[float, float, float, float] | None) -> NDArray[np.float64]:
    """The lowest frequencies, as imagehash.phash has them (the discrete cosine transform of a small grey image)."""
    pixels = np.asarray(grey.resize((_SAMPLES, _SAMPLES), Image.Resampling.LANCZOS, box=box), dtype=np.float64)
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
