"""Comparing every Triton kernel with torch before a run relies on them. Imports torch and triton: import this module late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...core.diagnosis import first_line
from ..self_check import functions_agree
from .elementwise_kernels import add, geglu
from .group_norm_kernels import group_norm
from .layer_norm_kernels import layer_norm


def kernel_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Compares every kernel, forward and backward, with torch; returns the problem, or "". A driver or a compiler can fail in any way."""
    try:
        generator = torch.Generator().manual_seed(0)

        def both(results: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return results[0] + results[1]

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        norm = nn.GroupNorm(4, 48, device=device, dtype=dtype).requires_grad_(False)
        norm.weight.copy_(1 + random(48) / 4)
        norm.bias.copy_(random(48))
        image, other, shift = random(2, 48, 9, 8), random(2, 48, 9, 8), random(2, 48)
        image, other = (tensor.to(memory_format=torch.channels_last) for tensor in (image, other))
        wide, silu = random(3, 5, 96), nn.functional.silu
        lines = nn.LayerNorm(96, device=device, dtype=dtype).requires_grad_(False)
        lines.weight.copy_(1 + random(96) / 4)
        lines.bias.copy_(random(96))
        pairs: list[tuple[torch.Tensor, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = [
            (image, lambda x: group_norm(x, norm, silu=True, shift=shift)[1], lambda x: silu(norm(x + shift[..., None, None]))),
            (image, lambda x: both(group_norm(x, norm, silu=False)), lambda x: x + norm(x)),
            (wide, lambda x: both(layer_norm(x, wide, lines)), lambda x: x + wide + lines(x + wide)),
            (image, lambda x: add(x, other, shift[0]), lambda x: x + other + shift[0][:, None, None]),
            (wide, geglu, lambda x: x.chunk(2, -1)[0] * nn.functional.gelu(x.chunk(2, -1)[1])),
        ]
        for inputs, ours, plain in pairs:
            if not functions_agree(ours, plain, [inputs], 0.02):
                return "its results are not torch's"
    except Exception as error:
        return first_line(error)
    return ""
