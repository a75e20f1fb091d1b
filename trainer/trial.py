"""Trying a fast way to compute before a run relies on it. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Way = Callable[..., torch.Tensor]


def agrees(ours: Way, plain: Way, inputs: Sequence[torch.Tensor], tolerance: float) -> bool:
    """Whether ``ours`` computes of ``inputs`` what ``plain`` does, and derives the same gradient for each of them.

    ``tolerance``: of the norm of what ``plain`` gives, for each tensor. Raises what a way raises.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pairs = zip(_results(ours, inputs), _results(plain, inputs), strict=True)
        return all(bool((one - other).norm() <= tolerance * other.norm()) for one, other in pairs)


def _results(way: Way, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for each in inputs]
    computed = way(*leaves)
    # every number counts differently: a plain sum derives to ones, which hide what is mixed up
    weights = torch.linspace(-1, 1, computed.numel(), device=computed.device).view(computed.shape)
    gradients = torch.autograd.grad((computed.float() * weights).sum(), leaves, materialize_grads=True)
    return [each.detach().float() for each in (computed, *gradients)]
