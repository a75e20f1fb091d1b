"""The norm of each module's weight change, and a limit to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .adapter import Pair

if TYPE_CHECKING:
    import torch


def weight_norms(pairs: Sequence[Pair]) -> torch.Tensor:
    """The Frobenius norm of ``scale`` times ``up`` times ``down`` of every pair, (pairs,) in fp32, on the weights' device.

    These are the "key norms" of kohya's trainer. Does not wait for a GPU.
    """
    import torch

    from ..lorafile.algorithms.weight_change import product_norm

    with torch.no_grad():
        return torch.stack([abs(pair.scale) * product_norm(pair.up, pair.down) for pair in pairs])


def limit_norms(pairs: Sequence[Pair], limit: float) -> torch.Tensor:
    """Scale every module whose norm is above ``limit`` down to it, in place; returns the norms afterwards, (pairs,).

    Max-norm regularisation as in kohya's trainer (``scale_weight_norms``): ``up`` and ``down`` are both multiplied by the square root of
    limit / norm, so that their product keeps its direction and they keep their ratio.
    """
    import torch

    with torch.no_grad():
        norms = weight_norms(pairs)
        factors = (limit / norms.clamp_min(limit)).sqrt()
        for pair, factor in zip(pairs, factors.unbind(), strict=True):
            pair.up.mul_(factor)
            pair.down.mul_(factor)
        return norms.clamp_max(limit)
