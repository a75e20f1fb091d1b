"""DoRA (Liu et al., arXiv 2402.09353): a weight is decomposed into a direction and a magnitude for each output.

With the weight W (out, in, ...), its change D and the magnitudes m, the changed weight is

    W' = m (W + D) / ||W + D||        (equation 5)

where ||.|| is the norm of each output's weights (all axes but the first). LyCORIS' older files have magnitudes of inputs instead.
"""

from __future__ import annotations

import torch

EPSILON = torch.finfo(torch.float32).eps  # added to norms, as LyCORIS and ComfyUI do


def output_norms(weight: torch.Tensor) -> torch.Tensor:
    """The norm of each output of ``weight`` (out, in, ...), (out,) in fp32."""
    norms: torch.Tensor = weight.float().reshape(weight.shape[0], -1).norm(dim=1)
    return norms


def apply_dora(weight: torch.Tensor, delta: torch.Tensor, dora_scale: torch.Tensor, *, of_base: bool = False) -> torch.Tensor:
    """``weight + delta`` in fp32 with the norm of each output (or, in older files, input) set to ``dora_scale``.

    ``dora_scale`` has one entry per output (first axis) or per input (second axis). ``of_base``: a ``dora_scale`` of outputs belongs to
    the norm of ``weight`` alone, as ComfyUI computes it (see ``comfyui_dora.py``).
    """
    total = weight.float() + delta.reshape(weight.shape)
    scale = dora_scale.float()
    by_output = scale.shape[0] == weight.shape[0] and scale.numel() == weight.shape[0]
    if by_output:
        norms = output_norms(weight if of_base else total)
    else:
        norms = torch.linalg.vector_norm(total, dim=[axis for axis in range(total.ndim) if axis != 1])
    shape = [1] * weight.ndim
    shape[0 if by_output else 1] = -1
    return total * (scale.flatten() / (norms + EPSILON)).reshape(shape)
