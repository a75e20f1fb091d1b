"""The log of training steps: events and trackers. A step is logged once its numbers have arrived from the GPU; nothing waits for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import devices
from ...core.errors import UserError
from ...core.gpu_sync import PendingCopy
from ...runs import events, states
from ...runs.run_plan import RunPlan
from .outputs import Outputs

if TYPE_CHECKING:
    import torch

_PACE_WEIGHT = 0.05  # of a new step in the pace: about the last twenty steps count
_REPORT_SECONDS = 0.5  # between two looks at what has arrived


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one step, still on the device: to read them waits for the GPU. ``lr`` is the learning rate that the step used."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float


@dataclass(frozen=True)
class _Pending:
    """A step that is not yet logged. ``numbers``: loss, gradient norm, and mean and largest weight norm where these were measured."""

    step: int
    epoch: int
    lr: float
    numbers: PendingCopy
    images_per_second: float


def divergence_error(lr: float | str, precision: str, checkpoints: Path, base: str, what: str) -> UserError:
    """The error when numbers overflowed: what to lower, and what is kept. ``base`` is the name of the base checkpoint."""
    lower = f"the learning rate ({lr:g}, try {lr / 4:g})" if isinstance(lr, float) else "the learning rate"
    other = ", and train in bf16 or fp32 instead of fp16" if precision == "fp16" else ""
    saved = states.newest_step(checkpoints)
    kept = f"The checkpoint of step {saved} is kept." if saved else "No checkpoint was saved before it."
    damaged = "" if saved else f" If a small rate changes nothing, {base} itself is damaged."
    return UserError(f"{what}; training cannot recover from that.", f"Lower {lower}{other}. {kept}{damaged}", kind="nan")


class Pace:
    """The seconds that an image takes, as the mean of the last steps: the time left must not jump with each of them.

    The first step, in which much happens once, counts only until there is another.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0

    def add(self, images_per_second: float) -> float:
        """Take in a step; returns the seconds of an image."""
        weight = max(_PACE_WEIGHT, 1 / max(1, self._steps))
        self._steps += 1
        self._seconds += weight * (1 / max(images_per_second, 1e-9) - self._seconds)
        return self._seconds


class StepLog:
    """Logs steps in their order. ``average`` is the exponential moving average of the loss up to the last step that was logged.

    ``diverged`` makes the error that is raised for a loss that is not finite. ``lock`` is that of the training state.
    """

    def __init__(
        self,
        plan: RunPlan,
        device: torch.device,
        outputs: Outputs,
        lock: AbstractContextManager[Any],
        diverged: Callable[[str], UserError],
        average: float,
    ) -> None:
        self._plan, self._device, self._outputs, self._lock, self._diverged = plan, device, outputs, lock, diverged
        self.average = average
        self._pending: list[_Pending] = []
        self._pace = Pace()
        self._reported_at = self._step_began = time.monotonic()

    def start_clock(self) -> None:
        """A step begins now: what took time before it does not count in its speed."""
        self._step_began = time.monotonic()

    def record(self, step: int, epoch: int, images: int, metrics: StepMetrics, weight_norms: torch.Tensor | None) -> None:
        """Take in a step; ``weight_norms`` (modules,) are those after it. The caller holds the lock."""
        import torch

        images_per_second = images / max(time.monotonic() - self._step_began, 1e-9)
        norms = [] if weight_norms is None else [weight_norms.mean(), weight_norms.max()]
        numbers = torch.stack([number.detach().float().reshape(()) for number in (metrics.loss, metrics.grad_norm, *norms)])
        self._pending.append(_Pending(step, epoch, metrics.lr, PendingCopy(numbers, self._device), images_per_second))

    def report(self) -> None:
        """Log the steps whose numbers have arrived, unless that was done a moment ago. Does not wait for the GPU."""
        now = time.monotonic()
        if now - self._reported_at > _REPORT_SECONDS or self._device.type == "cpu":
            with self._lock:
                arrived = next((place for place, each in enumerate(self._pending) if not each.numbers.is_ready()), len(self._pending))
                self._log(arrived)
            self._reported_at = now

    def flush(self) -> None:
        """Log all recorded steps. The caller holds the lock. Raises UserError at the first loss that is not finite."""
        self._log(len(self._pending))

    def _log(self, count: int) -> None:
        pending, self._pending = self._pending[:count], self._pending[count:]
        plan, memory = self._plan, devices.peak_memory_gb(self._device)
        for each in pending:
            step, lr, rate = each.step, each.lr, each.images_per_second
            loss, norm, *norms = each.numbers.values()
            if not math.isfinite(loss):
                raise self._diverged(f"The loss became {loss} at step {step}")
            self.average = loss if step == 1 else 0.95 * self.average + 0.05 * loss
            eta = (plan.steps - step) * self._images_per_step() * self._pace.add(rate)
            event = events.Step(step, plan.steps, each.epoch + 1, loss, self.average, lr, norm, rate, eta, memory)
            scalars = {"loss": loss, "loss/average": self.average, "lr": lr, "grad_norm": norm}
            if norms:
                mean, largest = norms
                event = replace(event, weight_norm=mean, weight_norm_max=largest)
                scalars |= {"weight_norm": mean, "weight_norm/max": largest}
            self._outputs.emit(event)
            self._outputs.trackers.scalars(step, scalars)

    def _images_per_step(self) -> float:
        return sum(self._plan.buckets.values()) / self._plan.steps_per_epoch
