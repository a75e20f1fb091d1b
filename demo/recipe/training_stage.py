"""Time budget, schedule, averages and checkpoints of a training stage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.core.files.writing import atomic_path


class Budget:
    """Progress of a stage, as the larger share of its minutes or steps. Includes earlier sessions."""

    def __init__(self, minutes: float, max_steps: int, spent: float = 0.0, step: int = 0) -> None:
        self.minutes, self.max_steps = minutes, max_steps
        self.step = step
        self._before = spent
        self._start = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of training so far, including earlier sessions."""
        return self._before + time.monotonic() - self._start

    @property
    def share(self) -> float:
        """0 at the start, 1 when the stage is over."""
        if self.minutes <= 0:
            return 1.0
        return min(1.0, max(self.spent / (60 * self.minutes), self.step / self.max_steps))

    @property
    def over(self) -> bool:
        """Whether the time or the steps are used up."""
        return self.share >= 1.0


def learning_rate_factor(share: float, warmup: float = 0.02, decay_from: float = 0.5) -> float:
    """Learning-rate factor: linear warm-up, constant, then a cosine down to 2 %."""
    if share < warmup:
        return max(share / warmup, 0.02)
    if share < decay_from:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - decay_from) / (1 - decay_from)))


def set_rates(optimisers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to ``factor`` times the rate it was made with."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor


def restore_optimisers(optimisers: Iterable[torch.optim.Optimizer], states: Iterable[dict[str, Any]]) -> None:
    """Load saved states but keep the optimisers' present learning rates."""
    for optimiser, state in zip(optimisers, states, strict=True):
        rates = [group["lr"] for group in optimiser.param_groups]
        optimiser.load_state_dict(state)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["base_lr"] = rate


class Average:
    """Exponential moving average of a module's weights; its memory grows with the steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
        torch._foreach_lerp_([self.weights[key] for key in present], list(present.values()), 1 - decay)


def save_stage(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with atomic_path(path) as part:
        torch.save(dict(state), part)


def load_stage(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of :func:`save_stage`; ``None`` if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """Losses as JSON lines, and their mean since the last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, float | Tensor] = {}
        self.count = 0

    def add(self, **values: float | Tensor) -> None:
        """Add one step's values. Tensors of one element stay on their device until :meth:`write`: a step need not wait for it."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1

    def write(self, budget: Budget, **extra: float) -> dict[str, float]:
        """Append the means with step and seconds; returns them."""
        line = {"step": float(budget.step), "seconds": round(budget.spent, 1), **extra}
        line.update({k: round(float(v) / max(1, self.count), 6) for k, v in self.sums.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self.count = {}, 0
        return line
