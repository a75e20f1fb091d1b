"""What two copies of one picture have in common: a perceptual hash, and a few colours."""

from __future__ import annotations

from itertools import pairwise

import imagehash
import numpy as np
from PIL import Image

HASH_SIDE = 16  # 256 bits: 64 are too few to tell drawn faces apart
COLOUR_SIDE = 4
COLOUR_LIMIT = 14.0  # mean difference of 8-bit values; JPEG and resizing stay below 5


def signature(image: Image.Image) -> str:
    """Hex of the perceptual hash (64 digits), a colon, hex of a 4x4 RGB miniature (96 digits)."""
    step = min(image.size) // 128
    small = image.reduce(step) if step > 1 else image
    bits = imagehash.phash(small, hash_size=HASH_SIDE)
    colours = small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX)
    return f"{bits}:{colours.tobytes().hex()}"


class NearDuplicates:
    """Finds an earlier picture that looks the same, among any number, without comparing with each.

    Two hashes that differ in at most ``distance`` bits agree completely in at least one of ``distance + 1`` bands
    (pigeonhole), so only pictures that share a band are compared. Grey hashes ignore colour, and a re-coloured
    drawing is another picture: the miniatures must agree, too.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        bits = HASH_SIDE * HASH_SIDE
        edges = [round(i * bits / (distance + 1)) for i in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]
        self._hashes: list[int] = []
        self._colours: list[bytes] = []
        self._names: list[str] = []

    def add(self, name: str, signature: str) -> str | None:
        """The name of an earlier picture that this one repeats; otherwise None, and this one is remembered."""
        text, _, colour = signature.partition(":")
        bits, miniature = int(text, 16), bytes.fromhex(colour)
        keys = [(bits >> low) & mask for low, mask in self._bands]
        seen: set[int] = set()
        for table, key in zip(self._tables, keys, strict=True):
            for index in table.get(key, ()):
                if index in seen:
                    continue
                seen.add(index)
                if (bits ^ self._hashes[index]).bit_count() <= self._distance and _close(miniature, self._colours[index]):
                    return self._names[index]
        for table, key in zip(self._tables, keys, strict=True):
            table.setdefault(key, []).append(len(self._names))
        self._hashes.append(bits)
        self._colours.append(miniature)
        self._names.append(name)
        return None


def alike(a: str | None, b: str | None, distance: int) -> bool:
    """Whether two signatures are those of one picture, within ``distance`` bits of the hash."""
    if not a or not b:
        return False
    finder = NearDuplicates(distance)
    finder.add("a", a)
    return finder.add("b", b) is not None


def _close(a: bytes, b: bytes) -> bool:
    difference = np.frombuffer(a, np.uint8).astype(np.int16) - np.frombuffer(b, np.uint8)
    return float(np.abs(difference).mean()) <= COLOUR_LIMIT
