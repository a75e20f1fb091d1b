"""Each Triton kernel equals torch's own operation, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.unit.compute.fused_blocks.helpers import DEVICE, random
from trainer.compute.fused_blocks import elementwise_kernels, group_norm_kernels, kernel_check, layer_norm_kernels

ROOT = Path(__file__).resolve().parents[4]
Way = Callable[[torch.Tensor], Any]


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return random(*shape, seed=seed).to(memory_format=torch.channels_last)


def same(inputs: torch.Tensor, ours: Way, theirs: Way, tolerance: float = 2e-6) -> None:
    """The same results, and the same derivative of a weighted sum of all of them."""
    found = []
    for way in (ours, theirs):
        given = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        results = way(given)
        results = results if isinstance(results, tuple) else (results,)
        sum((result * random(*result.shape, seed=3 + place)).sum() for place, result in enumerate(results)).backward()
        found.append([*(result.detach() for result in results), given.grad])
    for one, two in zip(*found, strict=True):
        assert one.shape == two.shape
        assert float((one - two).norm()) <= tolerance * float(two.norm())


def group_norm_of(channels: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6, device=DEVICE).requires_grad_(False)
    norm.weight.copy_(1 + random(channels, seed=1) / 3)
    norm.bias.copy_(random(channels, seed=2))
    return norm


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width"), [(320, 32, 8, 8), (48, 4, 9, 7), (96, 4, 1, 1), (64, 1, 40, 33), (30, 3, 13, 21)]
)
@pytest.mark.seconds
def test_group_norm_matches_torch(channels: int, groups: int, height: int, width: int, silu: bool) -> None:
    norm = group_norm_of(channels, groups)
    activated: Way = functional.silu if silu else lambda x: x
    inputs = 3 + 2 * picture(2, channels, height, width)
    same(inputs, lambda x: group_norm_kernels.group_norm(x, norm, silu=silu)[1], lambda x: activated(norm(x)), 1e-5)
    shift = random(2, channels, seed=4)
    same(
        inputs,
        lambda x: group_norm_kernels.group_norm(x, norm, silu=silu, shift=shift),
        lambda x: (x, activated(norm(x + shift[:, :, None, None]))),
        1e-5,
    )


def test_group_norm_is_accurate_far_from_zero() -> None:
    norm, inputs = group_norm_of(64, 8), 1000 + picture(1, 64, 16, 16)
    _, ours = group_norm_kernels.group_norm(inputs, norm, silu=False)
    exact = norm.double()(inputs.double())
    assert float((ours - exact).norm()) < 2e-4 * float(exact.norm())


def test_group_norm_returns_channels_last() -> None:
    norm, inputs = group_norm_of(48, 4), random(2, 48, 6, 5)
    _, normed = group_norm_kernels.group_norm(inputs, norm, silu=False)
    assert normed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normed, norm(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 320), (1, 7, 1280), (130, 24)])
def test_layer_norm_matches_torch(shape: tuple[int, ...]) -> None:
    norm = nn.LayerNorm(shape[-1], device=DEVICE).requires_grad_(False)
    norm.weight.copy_(1 + random(shape[-1], seed=1) / 3)
    norm.bias.copy_(random(shape[-1], seed=2))
    residual = random(*shape, seed=5)
    same(random(*shape), lambda x: layer_norm_kernels.layer_norm(x, None, norm), lambda x: (x, norm(x)))
    same(random(*shape), lambda x: layer_norm_kernels.layer_norm(x, None, norm)[1], norm)
    same(random(*shape), lambda x: layer_norm_kernels.layer_norm(x, residual, norm), lambda x: (x + residual, norm(x + residual)))
    same(residual, lambda r: layer_norm_kernels.layer_norm(random(*shape), r, norm)[1], lambda r: norm(random(*shape) + r))
    same(random(*shape), lambda x: layer_norm_kernels.layer_norm(x, residual, norm)[0], lambda x: x + residual)


def test_geglu_and_add_match_torch() -> None:
    same(3 * random(3, 5, 2 * 300), elementwise_kernels.geglu, lambda x: x.chunk(2, -1)[0] * functional.gelu(x.chunk(2, -1)[1]))
    other, bias = picture(2, 40, 9, 9, seed=1), random(40, seed=2)
    same(picture(2, 40, 9, 9), lambda x: elementwise_kernels.add(x, other, bias), lambda x: x + other + bias[:, None, None])
    same(picture(2, 40, 9, 9), lambda x: elementwise_kernels.add(other, x, None), lambda x: x + other)


@pytest.mark.seconds
def test_every_kernel_compiles_for_gpus_of_three_generations() -> None:
    script = [sys.executable, "-W", "ignore", "-m", "tests.unit.compute.fused_blocks.compile_kernels"]
    done = subprocess.run(script, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("variants of 11 kernels; not compiled: none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_self_check_accepts_the_kernels(dtype: torch.dtype) -> None:
    assert kernel_check.kernel_problem(DEVICE, dtype) == ""


@pytest.mark.seconds
def test_self_check_rejects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "geglu", lambda x: x.chunk(2, -1)[0] * functional.silu(x.chunk(2, -1)[1]))
    assert kernel_check.kernel_problem(DEVICE, torch.float32) == "its results are not torch's"

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no C compiler was found\nand more")

    monkeypatch.setattr(kernel_check, "geglu", refuse)
    assert kernel_check.kernel_problem(DEVICE, torch.float32) == "no C compiler was found"
