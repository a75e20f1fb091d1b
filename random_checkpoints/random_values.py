"""Random values for the tensors of a file, in parts, so that a full-size model is never whole in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_PART = 1 << 22


def uniform(name: str, seed: int, count: int, deviation: float) -> Iterator[npt.NDArray[np.float32]]:
    """``count`` values around 0 with this standard deviation: those of the tensor ``name``."""
    # one random stream per tensor, so that changing the width of one leaves the others as they are
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    for start in range(0, count, _PART):
        values = random.random(min(_PART, count - start), dtype=np.float32)
        values -= 0.5
        values *= 2 * math.sqrt(3) * deviation  # uniform on ±h has the standard deviation h / √3
        yield values


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves, rounded to nearest: bf16 is fp32 without its last 16 bits."""
    return ((values.view("<u4") + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")
