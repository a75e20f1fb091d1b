"""Norms, their limit and the moving average, against the products and sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.adapters.adapter import Pair
from trainer.adapters.ema import Ema
from trainer.adapters.norms import limit_norms, weight_norms


def parameter(*shape: int, seed: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def some_pairs() -> list[Pair]:
    """A linear layer, a 1x1 and a 3x3 convolution, of different scales; one small, one untrained."""
    return [
        Pair("linear", parameter(4, 10, seed=1), parameter(12, 4, seed=2), scale=0.5),
        Pair("one", parameter(2, 6, 1, 1, seed=3), parameter(8, 2, 1, 1, seed=4), scale=2.0),
        Pair("three", parameter(3, 5, 3, 3, seed=5), parameter(7, 3, 1, 1, seed=6), scale=1.0),
        Pair("small", torch.nn.Parameter(0.01 * parameter(2, 4, seed=7).data), parameter(4, 2, seed=8), scale=1.0),
        Pair("untrained", parameter(2, 4, seed=9), torch.nn.Parameter(torch.zeros(4, 2))),
    ]


def product(pair: Pair) -> torch.Tensor:
    """What the module adds to its weight: for convolutions by convolving one kernel with the other."""
    if pair.down.ndim == 2:
        return pair.scale * (pair.up @ pair.down).detach()
    convolved = torch.nn.functional.conv2d(pair.down.permute(1, 0, 2, 3), pair.up).permute(1, 0, 2, 3)
    return pair.scale * convolved.detach()


def test_a_module_s_norm_is_that_of_the_weight_it_adds() -> None:
    pairs = some_pairs()
    assert weight_norms(pairs).tolist() == pytest.approx([float(torch.linalg.vector_norm(product(p))) for p in pairs], rel=1e-5)


def test_modules_above_the_limit_are_shortened_to_it_and_keep_their_direction() -> None:
    limit = 1.0
    pairs, before = some_pairs(), [product(pair) for pair in some_pairs()]
    balance = [float(pair.up.detach().norm() / pair.down.detach().norm()) for pair in pairs]
    scaled_norms = limit_norms(pairs, limit)
    for pair, old, norm, ratio in zip(pairs, before, scaled_norms.tolist(), balance, strict=True):
        # kohya's rule: the product is multiplied by min(norm, limit) / norm, half of it (the root) in each matrix
        length = float(torch.linalg.vector_norm(old))
        assert torch.allclose(product(pair), old * (min(length, limit) / length if length else 1.0), atol=1e-6)
        assert norm == pytest.approx(min(length, limit), rel=1e-5)
        assert float(pair.up.detach().norm() / pair.down.detach().norm()) == pytest.approx(ratio, rel=1e-5)


def test_below_the_limit_not_a_bit_changes() -> None:
    pairs, same = some_pairs(), some_pairs()
    limit_norms(pairs, 1000.0)
    assert all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in zip(pairs, same, strict=True))


def test_the_average_is_the_sum_of_all_weights_with_their_shares() -> None:
    weight, decay, steps = torch.nn.Parameter(torch.zeros(3)), 0.8, 60
    ema = Ema({"w": weight}, decay)
    seen = [np.zeros(3)]
    for step in range(1, steps + 1):
        with torch.no_grad():
            weight.copy_(torch.randn(3, generator=torch.Generator().manual_seed(step)))
        seen.append(weight.detach().double().numpy().copy())
        ema.update(step)
    # unrolled: what step k added, times every later step's decay
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(1, steps + 1)]
    shares = [math.prod(decays), *((1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(steps))]
    assert sum(shares) == pytest.approx(1)
    assert ema.state()["w"].numpy() == pytest.approx(sum(share * value for share, value in zip(shares, seen, strict=True)), abs=1e-6)
    assert decays[0] < decay == decays[-1]  # the warm-up ends


def test_restored_average_continues_with_the_same_bits() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    one = Ema({"w": weight}, 0.99)
    one.update(1)
    other = Ema({"w": torch.nn.Parameter(torch.full((2,), 5.0))}, 0.99)
    other.load_state(one.state())
    assert torch.equal(other.state()["w"], one.state()["w"])
    other.show()
