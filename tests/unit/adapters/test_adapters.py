"""The layers that LoRA adds compute what their papers say, written here as plain matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.adapters import adapter
from trainer.adapters.adapter import Pair

RANK, ALPHA = 3, 5.0


def layer(kind: str, **options: Any) -> tuple[nn.Module, Pair, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model of one layer with LoRA of random weights; the pair, the layer's own weight and bias, and an input."""
    torch.manual_seed(0)
    plain = nn.Linear(6, 4) if kind == "linear" else nn.Conv2d(2, 4, 3, padding=1)
    model = nn.Sequential(plain).requires_grad_(False)
    adapter.inject(model, ["0"], rank=RANK, alpha=ALPHA, seed=1, **options)
    (pair,) = adapter.pairs(model)
    with torch.no_grad():
        pair.up.copy_(torch.randn_like(pair.up))
        if pair.magnitude is not None:
            pair.magnitude.mul_(torch.rand_like(pair.magnitude) + 0.5)
    x = torch.randn(5, 6) if kind == "linear" else torch.randn(2, 2, 7, 5)
    assert plain.bias is not None
    return model, pair, plain.weight, plain.bias, x


def change(pair: Pair, weight: torch.Tensor) -> torch.Tensor:
    """up times down, in the shape of ``weight``: a convolution's down has its kernel, its up is 1x1."""
    return (pair.up.flatten(1) @ pair.down.flatten(1)).reshape(weight.shape)


def applied(kind: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight, bias) if kind == "linear" else F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_alpha_by_rank_and_with_rslora_alpha_by_its_root(kind: str, stabilised: bool) -> None:
    """Hu et al. 2021, section 4.1; Kalajdzievski 2023, theorem 3.2."""
    model, pair, weight, bias, x = layer(kind, rslora=stabilised)
    scale = ALPHA / (math.sqrt(RANK) if stabilised else RANK)
    torch.testing.assert_close(model(x), applied(kind, x, weight + scale * change(pair, weight), bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_dora_is_a_magnitude_times_a_direction_whose_norm_is_a_constant_to_gradients(kind: str) -> None:
    """Liu et al. 2024, equations 5 and 11: m (W + s B A) / ||W + s B A||, one norm an output, which gradients do not go through."""
    model, pair, weight, bias, x = layer(kind, dora=True)
    assert pair.magnitude is not None
    direction = weight + ALPHA / RANK * change(pair, weight)
    norm = direction.detach().flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    expected = applied(kind, x, pair.magnitude.reshape(norm.shape) * direction / norm, bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    goal, trained = torch.randn_like(expected), list(pair.tensors.values())
    ours, papers = (torch.autograd.grad(((output - goal) ** 2).sum(), trained) for output in (model(x), expected))
    for mine, papers_own in zip(ours, papers, strict=True):
        torch.testing.assert_close(mine, papers_own, rtol=1e-3, atol=1e-4)


def test_dora_starts_at_the_base_layer() -> None:
    model, pair, weight, bias, x = layer("linear", dora=True)
    with torch.no_grad():
        pair.up.zero_()
        assert pair.magnitude is not None
        pair.magnitude.copy_(weight.norm(dim=1).reshape(pair.magnitude.shape))
    torch.testing.assert_close(model(x), F.linear(x, weight, bias), rtol=1e-5, atol=1e-6)
