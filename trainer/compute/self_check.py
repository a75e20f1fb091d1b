"""Trying a fast way to compute before a run relies on it. Imports torch: import this module late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Way = Callable[..., torch.Tensor]
# Of the size of all gradients, and of that of each. In bf16 the trained demo base and a UNet with random weights are 0.02 and at most 0.11
# from fp32; a gradient that is left out or belongs to another weight is 1 or more.
APART, APART_EACH = 0.1, 0.3
_NEGLIGIBLE = 1e-3  # of the mean size of a gradient: what rounding may leave of one that is nearly zero
_NEXT_TO_ZERO, _COUNTS = 0.1, 0.3  # mean size of a weight times the root of its inputs; a random layer's is about 1


def agrees(ours: Way, plain: Way, inputs: Sequence[torch.Tensor], tolerance: float) -> bool:
    """Whether ``ours`` computes of ``inputs`` what ``plain`` does, and derives the same gradient for each of them.

    ``tolerance``: of the norm of what ``plain`` gives, for each tensor. Raises what a way raises.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pairs = zip(_results(ours, inputs), _results(plain, inputs), strict=True)
        return all(bool((one - other).norm() <= tolerance * other.norm()) for one, other in pairs)


def gradients_agree(ours: Sequence[torch.Tensor | None], theirs: Sequence[torch.Tensor | None]) -> bool:
    """Whether the same gradients are there, and differ by less than ``APART`` of their size in sum, and ``APART_EACH`` each.

    In sum alone, one of hundreds could be missing. Waits for the device.
    """
    apart, sizes = [], []
    for one, other in zip(ours, theirs, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None:
            other = other.to(one.device, torch.float32)
            apart.append(torch.linalg.vector_norm(one.float() - other))
            sizes.append(torch.linalg.vector_norm(other))
    if not sizes:
        return True
    differences, norms = torch.stack(apart), torch.stack(sizes)
    if not bool(torch.isfinite(norms).all()):
        return True  # where fp16 overflows, the scaler leaves the step out
    negligible = _NEGLIGIBLE * norms.square().mean().sqrt()
    in_sum = torch.linalg.vector_norm(differences) <= APART * torch.linalg.vector_norm(norms)
    return bool(in_sum & (differences <= APART_EACH * norms + negligible).all())


@contextmanager
def weights_that_count(parameters: Sequence[torch.nn.Parameter]) -> Iterator[bool]:
    """Within it, ``parameters`` (outputs, inputs, ...) that are next to zero have other values, always the same; gives whether any has.

    LoRA begins with up at zero: then down has no gradient, and none goes through LoRA to the layers before. Afterwards all weights are what
    they were, to the bit.
    """
    with torch.no_grad():
        scaled = [parameter.detach().float().square().mean().sqrt() * math.sqrt(_inputs(parameter)) for parameter in parameters]
        small = [parameter for parameter, size in zip(parameters, torch.stack(scaled).tolist(), strict=True) if size < _NEXT_TO_ZERO]
        kept = [parameter.detach().clone() for parameter in small]
        generator = torch.Generator().manual_seed(0)
        for parameter in small:
            values = torch.randn(parameter.shape, generator=generator) * (_COUNTS / math.sqrt(_inputs(parameter)))
            parameter.copy_(values)
    try:
        yield bool(small)
    finally:
        with torch.no_grad():
            for parameter, values in zip(small, kept, strict=True):
                parameter.copy_(values)


def _inputs(parameter: torch.Tensor) -> int:
    return max(1, parameter.numel() // max(1, len(parameter) if parameter.ndim else 1))


def _results(way: Way, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for each in inputs]
    computed = way(*leaves)
    # every number counts differently: a plain sum derives to ones, which hide what is mixed up
    weights = torch.linspace(-1, 1, computed.numel(), device=computed.device).view(computed.shape)
    gradients = torch.autograd.grad((computed.float() * weights).sum(), leaves, materialize_grads=True)
    return [each.detach().float() for each in (computed, *gradients)]
