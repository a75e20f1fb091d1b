"""The steps between the matrix products of a block, each as one function with one backward pass. Imports torch: import this module late.

Only inputs get gradients: norms, modulation and rotation are frozen. Norms compute in fp32 and round once.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import torch_private

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines for each token, (tokens, channels) each; both halves of the channels have the same."""


def modulated_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of ``x`` (batch, tokens, width), times ``1 + scale``, plus ``shift``, (batch, 1, width) each (Peebles and Xie 2023)."""
    result: torch.Tensor = _ModulatedNorm.apply(x, (1 + scale).to(x.dtype), shift.to(x.dtype), eps)  # type: ignore[no-untyped-call]
    return result


def rotated_norm(x: torch.Tensor, weight: torch.Tensor, rotation: Rotation | None, eps: float) -> torch.Tensor:
    """RMSNorm of each head of ``x`` (batch, tokens, heads, channels), times ``weight`` (channels,), then turned by ``rotation``
    (Su et al. 2021): the first half of a head's channels are the real, the second half the imaginary parts."""
    direct, crossed = weight.to(_wide(x.dtype)), None
    if rotation is not None:
        cosines, sines = (each.unsqueeze(1) for each in rotation)
        first, second = direct.chunk(2)
        # what each half takes from the other
        crossed = torch.cat([-second, first]) * sines
        direct = direct * cosines
    result: torch.Tensor = _RotatedNorm.apply(x, direct, crossed, eps)  # type: ignore[no-untyped-call]
    return result


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.contiguous()
        width = [x.shape[-1]]
        ctx.one_image = len(x) == 1  # whose modulation takes the place of the norm's weights
        if ctx.one_image:
            result, mean, deviation = torch.native_layer_norm(x, width, factor.view(-1), shift.view(-1), eps)
        else:
            normed, mean, deviation = torch.native_layer_norm(x, width, None, None, eps)
            result = torch.addcmul(shift, normed, factor)
        ctx.save_for_backward(x, factor, mean, deviation)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, factor, mean, deviation = ctx.saved_tensors
        by_normed, weight = (gradients[0].contiguous(), factor.view(-1)) if ctx.one_image else (gradients[0] * factor, None)
        return torch_private.layer_norm_input_gradient(by_normed, x, mean, deviation, weight), None, None, None


class _RotatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, direct: torch.Tensor, crossed: torch.Tensor | None, eps: float) -> torch.Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x.dtype))
        factor = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, factor, direct, crossed)
        return _turned(x * factor, direct, crossed).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, factor, direct, crossed = ctx.saved_tensors
        # the halves take from each other: turning back is the transposed matrix
        back = None if crossed is None else torch.cat(crossed.chunk(2, -1)[::-1], -1)
        by_normed = _turned(gradients[0].to(factor.dtype), direct, back)
        normed = x * factor
        along = torch.linalg.vecdot(normed, by_normed).div_(x.shape[-1]).unsqueeze(-1)
        return by_normed.addcmul_(normed, along, value=-1).mul_(factor).to(x.dtype), None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or ``dtype`` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def _turned(x: torch.Tensor, direct: torch.Tensor, crossed: torch.Tensor | None) -> torch.Tensor:
    """``x`` times ``direct``, and each half of the channels plus the other half of ``x`` times ``crossed``."""
    result = x * direct
    if crossed is not None:
        parts = zip(result.chunk(2, -1), reversed(x.chunk(2, -1)), crossed.chunk(2, -1), strict=True)
        for target, other, factor in parts:
            target.addcmul_(other, factor)
    return result
