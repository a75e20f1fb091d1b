"""Comparing a fast way to compute with the plain one, before a run relies on it. Imports torch: import this module late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Function = Callable[..., torch.Tensor]
# Relative differences that are allowed: of all gradients together, and of each. In bf16 the demo's trained base and a UNet with random
# weights differ from fp32 by 0.02 and at most 0.11; a gradient that is missing or belongs to another weight differs by 1 or more.
TOLERANCE, TOLERANCE_EACH = 0.1, 0.3
CHECKED_PASSES = 4  # of each shape through compiled blocks: an error may be small for one image and clear for another
_NEGLIGIBLE = 1e-3  # of the mean size of a gradient: what rounding may leave of one that is nearly zero
# Mean size of a weight times the root of its number of inputs: that of a randomly initialised layer is about 1.
_SMALL, _REPLACEMENT = 0.1, 0.3


def functions_agree(fast: Function, plain: Function, inputs: Sequence[torch.Tensor], tolerance: float) -> bool:
    """Whether ``fast`` computes the same result from ``inputs`` as ``plain``, and the same gradient for each of them.

    ``tolerance`` is relative to the norm of each of ``plain``'s tensors. Raises what the functions raise.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pairs = zip(_result_and_gradients(fast, inputs), _result_and_gradients(plain, inputs), strict=True)
        return all(bool((one - other).norm() <= tolerance * other.norm()) for one, other in pairs)


def gradients_agree(gradients: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]) -> bool:
    """Whether the same gradients exist, and differ by less than ``TOLERANCE`` of their size in sum, and ``TOLERANCE_EACH`` each.

    In the sum alone, one missing gradient of hundreds would not show. Waits for the device.
    """
    differences_each, norms_each = [], []
    for one, other in zip(gradients, expected, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None:
            other = other.to(one.device, torch.float32)
            differences_each.append(torch.linalg.vector_norm(one.float() - other))
            norms_each.append(torch.linalg.vector_norm(other))
    if not norms_each:
        return True
    differences, norms = torch.stack(differences_each), torch.stack(norms_each)
    if not bool(torch.isfinite(norms).all()):
        return True  # where fp16 overflows, the gradient scaler skips the step
    negligible = _NEGLIGIBLE * norms.square().mean().sqrt()
    in_sum = torch.linalg.vector_norm(differences) <= TOLERANCE * torch.linalg.vector_norm(norms)
    return bool(in_sum & (differences <= TOLERANCE_EACH * norms + negligible).all())


@contextmanager
def replace_small_weights(parameters: Sequence[torch.nn.Parameter]) -> Iterator[bool]:
    """Inside, those of ``parameters`` (outputs, inputs, ...) that are close to zero have other values, always the same; yields whether
    there are any.

    LoRA starts with its up matrix at zero: then down has no gradient, and none passes through LoRA to the layers before. Afterwards all
    weights are as they were, to the bit.
    """
    with torch.no_grad():
        sizes = [parameter.detach().float().square().mean().sqrt() * math.sqrt(_inputs(parameter)) for parameter in parameters]
        small = [parameter for parameter, size in zip(parameters, torch.stack(sizes).tolist(), strict=True) if size < _SMALL]
        original = [parameter.detach().clone() for parameter in small]
        generator = torch.Generator().manual_seed(0)
        for parameter in small:
            values = torch.randn(parameter.shape, generator=generator) * (_REPLACEMENT / math.sqrt(_inputs(parameter)))
            parameter.copy_(values)
    try:
        yield bool(small)
    finally:
        with torch.no_grad():
            for parameter, values in zip(small, original, strict=True):
                parameter.copy_(values)


def _inputs(parameter: torch.Tensor) -> int:
    return max(1, parameter.numel() // max(1, len(parameter) if parameter.ndim else 1))


def _result_and_gradients(function: Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for each in inputs]
    computed = function(*leaves)
    # every number gets another weight: the gradient of a plain sum is 1 everywhere, which hides numbers that are in the wrong place
    weights = torch.linspace(-1, 1, computed.numel(), device=computed.device).view(computed.shape)
    gradients = torch.autograd.grad((computed.float() * weights).sum(), leaves, materialize_grads=True)
    return [each.detach().float() for each in (computed, *gradients)]
