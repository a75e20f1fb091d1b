"""What is tried before a run relies on it: a wrong number, a wrong derivative and no number at all are all seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainer.trial import agrees

ONE, OTHER = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one * other


def slightly_off(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one * other * 1.01


def wrong_derivative(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Right, but as if ``other`` were a constant in a tenth of the result."""
    return one * other * 0.9 + one * other.detach() * 0.1


def mixed_up(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Right in its result; the gradients of the rows change places."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, one: torch.Tensor) -> torch.Tensor:
            return one.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0].flip(0)

    mixed: torch.Tensor = Mixed.apply(one)  # type: ignore[no-untyped-call]
    return mixed * other


def no_number(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one * other * float("nan")


@pytest.mark.parametrize("way", [slightly_off, wrong_derivative, mixed_up, no_number])
def test_what_differs_does_not_agree(way: Callable[..., torch.Tensor]) -> None:
    assert not agrees(way, product, [ONE, OTHER], 0.005)


def test_what_differs_by_less_than_the_tolerance_agrees_and_leaves_nothing_behind() -> None:
    assert agrees(product, product, [ONE, OTHER], 0.0)
    assert agrees(slightly_off, product, [ONE, OTHER], 0.02)
    assert ONE.grad is None
    assert not ONE.requires_grad


def test_it_works_where_nothing_is_derived() -> None:
    with torch.inference_mode():
        assert agrees(product, product, [torch.ones(2), torch.ones(2)], 0.0)
        assert not agrees(slightly_off, product, [torch.ones(2), torch.ones(2)], 0.005)


def test_a_way_that_does_not_use_an_input_does_not_agree() -> None:
    ones = torch.ones(3, 4)
    assert not agrees(lambda one, other: one * 1.0, product, [ONE, ones], 0.02)
