"""Learning rates over a run equal the published formulas, at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config.sections.optimizer import OptimizerSection
from trainer.training.optimizers import make_schedule

STEPS = 40


def constant(progress: float) -> float:
    return 1.0


def linear(progress: float) -> float:
    return 1 - progress


def cosine(progress: float) -> float:
    """SGDR without restarts, Loshchilov & Hutter 2017, equation 5."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def rex(progress: float) -> float:
    """REX, Chen et al. 2021, section 3."""
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))


def rates(settings: OptimizerSection) -> list[float]:
    """The rate of each step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule: Any = make_schedule(optimizer, settings, STEPS)
    seen = []
    for _ in range(STEPS):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("formula", [constant, linear, cosine, rex], ids=lambda formula: formula.__name__)
def test_every_step_has_the_rate_of_the_formula(formula: Callable[[float], float], warmup: int) -> None:
    settings = OptimizerSection.model_validate({"schedule": formula.__name__, "warmup_steps": warmup})
    expected = [0.5 * (step / warmup if step < warmup else formula((step - warmup) / (STEPS - warmup))) for step in range(STEPS)]
    assert rates(settings) == pytest.approx(expected, abs=1e-7)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    for schedule in ("constant", "linear", "cosine"):
        seen = rates(OptimizerSection.model_validate({"schedule": schedule, "warmup_steps": 100}))
        assert seen == pytest.approx([0.5 * step / 100 for step in range(STEPS)])


def test_pieces_have_the_factors_of_their_rules() -> None:
    seen = rates(OptimizerSection.model_validate({"schedule": "piecewise_constant", "step_rules": "1:10,0.5:25,1e-1"}))
    assert seen == pytest.approx([0.5] * 10 + [0.25] * 15 + [0.05] * (STEPS - 25))


def test_constant_with_warmup_is_constant_that_warms_up() -> None:
    both = [rates(OptimizerSection.model_validate({"schedule": name, "warmup_steps": 7})) for name in ("constant", "constant_with_warmup")]
    assert both[0] == both[1] == pytest.approx([0.5 * min(1, step / 7) for step in range(STEPS)])


def test_every_schedule_of_diffusers_is_there() -> None:
    from diffusers.optimization import SchedulerType

    from trainer.config.sections.optimizer import SCHEDULES

    assert {kind.value for kind in SchedulerType} <= set(SCHEDULES)


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "piecewise_constant"},
        {"step_rules": "1:10,0.5"},
        *(
            {"schedule": "piecewise_constant", "step_rules": rules}
            for rules in ("x", "1:10", "1:10,0.5:5,0.1", "1:10,0.5:10,0.1", "-1:3,1")
        ),
    ],
)
def test_rules_that_say_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="step_rules"):
        OptimizerSection.model_validate(bad)
