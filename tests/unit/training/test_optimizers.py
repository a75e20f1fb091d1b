"""Optimisers and schedules, on a pair of matrices small enough to follow by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from trainer.adapters.adapter import Pair
from trainer.config.sections.optimizer import OptimizerSection
from trainer.core.errors import UserError
from trainer.families import family_named
from trainer.training.optimizers import learning_rate, make_optimizer, make_schedule, optimizer_arguments, rex

SD1, SDXL = (family_named(name).learning_rate for name in ("sd1", "sdxl"))
PACKAGES = {"lion": "lion_pytorch", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}


def pair(rank: int = 2, width: int = 6) -> Pair:
    torch.manual_seed(0)
    return Pair("m", torch.nn.Parameter(torch.randn(rank, width)), torch.nn.Parameter(torch.zeros(width, rank)))


def settings(**values: Any) -> OptimizerSection:
    return OptimizerSection(**values)


def fit(name: str, lr: float, steps: int) -> float:
    """The share of the error that remains after fitting up @ down to a fixed low-rank matrix."""
    torch.manual_seed(1)
    target = torch.randn(6, 2) @ torch.randn(2, 6)
    one = pair()
    optimizer = make_optimizer([one], settings(name=name, weight_decay=0.0), lr)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(steps):
        optimizer.zero_grad()
        ((one.up @ one.down - target) ** 2).mean().backward()
        optimizer.step()
    return float(((one.up @ one.down).detach() - target).square().mean() / target.square().mean())


@pytest.mark.parametrize(("name", "lr"), [("adamw", 0.05), ("adafactor", 0.05), ("lion", 0.01), ("prodigy", 1.0), ("schedule-free", 0.05)])
def test_every_optimizer_fits_a_low_rank_matrix(name: str, lr: float) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    assert fit(name, lr, 600) < 0.05


def test_a_torch_whose_fused_adamw_is_for_gpus_alone_trains_with_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(torch.optim.AdamW):
        def __init__(self, *groups: Any, **options: Any) -> None:
            super().__init__(*groups, **options)
            if options.get("fused"):
                raise RuntimeError("`fused=True` requires all the params to be CUDA")

    monkeypatch.setattr(torch.optim, "AdamW", Old)
    one = pair()
    optimizer = make_optimizer([one], settings(), 0.1)
    assert not any(group["fused"] for group in optimizer.param_groups)
    before = one.down.detach().clone()
    one.down.grad = torch.ones_like(before)
    optimizer.step()
    assert not torch.equal(one.down, before)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "prodigy", "schedule-free"])
def test_metadata_has_the_settings_of_the_optimizer(name: str) -> None:
    """They are in the group of every optimiser, or it would have refused them."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    chosen = settings(name=name, weight_decay=0.02, beta1=0.8)
    arguments = optimizer_arguments(chosen)
    group = make_optimizer([pair()], chosen, 0.1).param_groups[0]
    assert {key: group[key] for key in arguments if key in group} == {key: value for key, value in arguments.items() if key in group}
    assert {"weight_decay"} <= arguments.keys() & group.keys()
    assert arguments.get("betas", (0.8,))[0] == 0.8


def test_adamw_steps_equal_the_formula() -> None:
    one = pair()
    lr, decay = 0.1, 0.01
    optimizer = make_optimizer([one], settings(weight_decay=decay), lr)
    before = one.down.detach().clone()
    gradient = torch.full_like(before, 0.3)
    one.down.grad = gradient.clone()
    optimizer.step()
    # Loshchilov & Hutter 2019: after one step the bias-corrected moments are the gradient and its square
    expected = before * (1 - lr * decay) - lr * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(one.down, expected, atol=1e-6)


def test_lora_plus_gives_up_its_multiple_of_the_rate() -> None:
    optimizer = make_optimizer([pair()], settings(lora_plus_ratio=16), 1e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1.6e-3])


def test_lora_plus_moves_up_by_its_multiple_for_the_same_gradient() -> None:
    """Hayou et al. 2024, section 4: the rate of B is lambda times that of A, and nothing else differs."""
    one, ratio = pair(), 16.0
    optimizer = make_optimizer([one], settings(lora_plus_ratio=ratio, weight_decay=0.0), 1e-4)
    before = [one.down.detach().clone(), one.up.detach().clone()]
    for _ in range(3):
        one.down.grad, one.up.grad = torch.full_like(one.down, 0.2), torch.full_like(one.up, 0.2)
        optimizer.step()
    moved = [float((tensor.detach() - start).mean()) for tensor, start in zip((one.down, one.up), before, strict=True)]
    assert moved[0] == pytest.approx(-3e-4, rel=1e-3) and moved[1] == pytest.approx(ratio * moved[0], rel=1e-3)


def test_automatic_rates_fall_with_rank_and_know_the_optimizer() -> None:
    auto = settings(lr="auto")
    assert learning_rate(auto, SD1, 16) == 1e-4 == learning_rate(auto, SD1, 4)
    assert learning_rate(auto, SD1, 64) == pytest.approx(5e-5)
    assert learning_rate(auto, SDXL, 16) < learning_rate(auto, SD1, 16)
    assert learning_rate(settings(lr="auto", name="prodigy"), SD1, 64) == 1.0
    assert learning_rate(settings(lr="auto", name="lion"), SD1, 16) < 1e-4
    assert learning_rate(settings(lr=3e-4), SD1, 64) == 3e-4


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *_: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("trainer.training.optimizers.importlib.import_module", missing)
    with pytest.raises(UserError, match="pip install prodigyopt"):
        make_optimizer([pair()], settings(name="prodigy"), 1.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "rex", "polynomial"])
def test_rates_follow_the_schedules_formula(schedule: str) -> None:
    lr, warmup, steps = 0.1, 4, 20
    chosen = settings(schedule=schedule, warmup_steps=warmup)
    optimizer = make_optimizer([pair()], chosen, lr)
    scheduler = make_schedule(optimizer, chosen, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    def expected(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        p = (step - warmup) / (steps - warmup)
        if schedule == "polynomial":  # to diffusers' lr_end of 1e-7, power 1
            return (lr - 1e-7) * (1 - p) + 1e-7
        return lr * {"constant": 1.0, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2, "rex": (1 - p) / (1 - p / 2)}[schedule]

    assert seen == pytest.approx([expected(step) for step in range(steps)], rel=1e-6, abs=1e-9)


def test_rex_stays_above_linear_and_ends_at_zero() -> None:
    values = [rex(step, 0, 100) for step in range(101)]
    assert values[0] == 1 and values[100] == 0
    assert all(value > 1 - step / 100 for step, value in enumerate(values[1:100], start=1))


def test_schedule_free_takes_no_schedule() -> None:
    with pytest.raises(ValueError, match="use schedule constant"):
        settings(name="schedule-free", schedule="cosine")


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "prodigy", "schedule-free"])
@pytest.mark.parametrize("lora_plus_ratio", [1.0, 4.0])
def test_magnitudes_have_no_weight_decay_and_matrices_have(name: str, lora_plus_ratio: float) -> None:
    """Where the loss asks for nothing, only weight decay moves a parameter."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    one = replace(pair(), magnitude=torch.nn.Parameter(torch.full((6,), 3.0)))
    assert one.magnitude is not None
    ratio = 1.0 if name == "prodigy" else lora_plus_ratio
    optimizer = make_optimizer([one], settings(name=name, weight_decay=0.1, lora_plus_ratio=ratio), 0.5)
    if hasattr(optimizer, "train"):
        optimizer.train()
    before = one.down.detach().norm()
    for _ in range(3):
        for parameter in one.tensors.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert torch.equal(one.magnitude, torch.full((6,), 3.0))
    assert name == "prodigy" or float(one.down.detach().norm()) < float(before)  # Prodigy's rate is nearly zero without gradients
