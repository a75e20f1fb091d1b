"""Counter-based random numbers: each depends on the seed and on its position in the run, not on earlier draws.

So no generator state is saved, and a resumed run, or the same run on several processes, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed derived from the run's ``seed``, a ``purpose`` such as ``"noise"``, and counters such as epoch and position."""
    text = "|".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator seeded with ``derive_seed``."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, *counters))
