"""What is tried before a run relies on it: a wrong number, a wrong derivative and no number at all are all seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainer.compute.self_check import functions_agree, gradients_agree, replace_small_weights

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
def test_different_functions_do_not_agree(way: Callable[..., torch.Tensor]) -> None:
    assert not functions_agree(way, product, [ONE, OTHER], 0.005)


def test_what_differs_by_less_than_the_tolerance_agrees_and_leaves_nothing_behind() -> None:
    assert functions_agree(product, product, [ONE, OTHER], 0.0)
    assert functions_agree(slightly_off, product, [ONE, OTHER], 0.02)
    assert ONE.grad is None
    assert not ONE.requires_grad


def test_it_works_where_nothing_is_derived() -> None:
    with torch.inference_mode():
        assert functions_agree(product, product, [torch.ones(2), torch.ones(2)], 0.0)
        assert not functions_agree(slightly_off, product, [torch.ones(2), torch.ones(2)], 0.005)


def test_function_that_ignores_an_input_does_not_agree() -> None:
    ones = torch.ones(3, 4)
    assert not functions_agree(lambda one, other: one * 1.0, product, [ONE, ones], 0.02)


def gradients() -> list[torch.Tensor | None]:
    """Of 192 weights, a hundred times apart in size, and of one that takes no part."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 4, generator=generator) * 10 ** (-2 * number / 191) for number in range(192)] + [None]


def test_gradients_that_are_rounded_agree() -> None:
    mine, theirs = gradients(), gradients()
    assert gradients_agree(mine, theirs)
    assert gradients_agree([None if each is None else each.bfloat16() for each in mine], theirs)
    noise = torch.Generator().manual_seed(3)
    assert gradients_agree([None if each is None else each * (1 + 0.08 * torch.randn(8, 4, generator=noise)) for each in mine], theirs)


@pytest.mark.parametrize("place", [0, 95, 191])
@pytest.mark.parametrize("change", [torch.zeros_like, torch.neg, lambda each: each.flip(0), lambda each: 1.5 * each, lambda each: each / 0])
def test_one_wrong_gradient_of_many_is_found(place: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    mine, theirs = gradients(), gradients()
    one = mine[place]
    assert one is not None
    mine[place] = change(one)
    assert not gradients_agree(mine, theirs)


def test_a_gradient_is_there_in_both_or_in_none() -> None:
    mine, theirs = gradients(), gradients()
    assert not gradients_agree([*mine[:-1], torch.zeros(2)], theirs)
    assert not gradients_agree(mine, [None, *theirs[1:]])
    assert gradients_agree([None], [None])


def test_what_rounding_leaves_of_a_gradient_that_is_nearly_zero_is_no_difference() -> None:
    theirs = [*gradients(), torch.full((4,), 1e-9)]
    assert gradients_agree([*theirs[:-1], torch.zeros(4)], theirs)
    assert gradients_agree([torch.zeros(3)], [torch.zeros(3)])


def test_overflowing_gradients_are_not_compared() -> None:
    assert gradients_agree([torch.ones(2)], [torch.tensor([1.0, float("inf")])])


def test_weights_next_to_zero_count_for_a_while_and_are_the_same_afterwards_to_the_bit() -> None:
    random = torch.Generator().manual_seed(4)
    down, nothing, small = torch.randn(4, 64, generator=random) / 8, -torch.zeros(32, 4), torch.randn(32, 4, generator=random) * 1e-4
    parameters = [torch.nn.Parameter(each.clone()) for each in (down, nothing, small)]
    with replace_small_weights(parameters) as changed:
        assert changed and torch.equal(parameters[0], down)
        for parameter in parameters[1:]:
            assert 0.1 < float(parameter.detach().square().mean().sqrt()) * 2 < 0.5
            assert int(torch.linalg.matrix_rank(parameter.detach())) == 4
    for parameter, before in zip(parameters, (down, nothing, small), strict=True):
        assert torch.equal(parameter.detach().view(torch.int32), before.view(torch.int32))
    with replace_small_weights(parameters[:1]) as changed:
        assert not changed
