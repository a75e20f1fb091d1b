"""What a run tells of its steps: events and trackers. Numbers are told when they have come from the GPU, and none is waited for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...core import devices
from ...core.errors import UserError
from ...core.gpu_sync import PendingCopy
from ...runs import events, states
from ..job import Job
from ..learner import Measured
from .trackers import Trackers

if TYPE_CHECKING:
    import torch

_FLUSH_SECONDS = 0.5  # between two looks at what has come


@dataclass(frozen=True)
class _Untold:
    step: int
    epoch: int
    lr: float
    numbers: PendingCopy  # loss, gradient norm, and mean and largest of the weight norms where they were measured
    images_per_second: float


def not_finite(job: Job, what: str) -> UserError:
    """What to tell when numbers overflowed: what to lower, and what is kept."""
    lr = job.config.optimizer.lr
    lower = f"the learning rate ({lr:g}, try {lr / 4:g})" if isinstance(lr, float) else "the learning rate"
    other = ", and train in bf16 or fp32 instead of fp16" if job.precision == "fp16" else ""
    saved = states.newest_step(job.run.checkpoints)
    kept = f"The checkpoint of step {saved} is kept." if saved else "No checkpoint was saved before it."
    damaged = "" if saved else f" If a small rate changes nothing, {job.checkpoint.name} itself is damaged."
    return UserError(f"{what}; training cannot recover from that.", f"Lower {lower}{other}. {kept}{damaged}", kind="nan")


class Teller:
    """Tells steps in their order. ``average`` is the exponential moving average of the loss up to the last step that was told."""

    def __init__(self, job: Job, average: float) -> None:
        self.job, self.average = job, average
        self.trackers = Trackers(job)
        self._untold: list[_Untold] = []
        self._flushed_at = time.monotonic()

    def note(self, step: int, epoch: int, measured: Measured, weight_norms: torch.Tensor | None, images_per_second: float) -> None:
        """Remember a step; ``weight_norms`` (modules,) are those after it. The caller holds ``between_steps``."""
        import torch

        norms = [] if weight_norms is None else [weight_norms.mean(), weight_norms.max()]
        numbers = torch.stack([number.detach().float().reshape(()) for number in (measured.loss, measured.grad_norm, *norms)])
        arriving = PendingCopy(numbers, self.job.device)
        self._untold.append(_Untold(step, epoch, measured.lr, arriving, images_per_second))

    def tell(self) -> None:
        """Tell the steps that were noted and whose numbers are there, unless that was done a moment ago: nothing waits for the GPU."""
        now = time.monotonic()
        if now - self._flushed_at > _FLUSH_SECONDS or self.job.device.type == "cpu":
            with self.job.between_steps:
                done = next((place for place, each in enumerate(self._untold) if not each.numbers.is_ready()), len(self._untold))
                self._tell(done)
            self._flushed_at = now

    def flush(self) -> None:
        """Tell all steps that were noted. The caller holds ``between_steps``. Raises UserError at the first loss that is not finite."""
        self._tell(len(self._untold))

    def _tell(self, count: int) -> None:
        untold, self._untold = self._untold[:count], self._untold[count:]
        plan, memory = self.job.plan, devices.peak_memory_gb(self.job.device)
        for each in untold:
            step, lr = each.step, each.lr
            loss, norm, *norms = each.numbers.values()
            if not math.isfinite(loss):
                raise not_finite(self.job, f"The loss became {loss} at step {step}")
            self.average = loss if step == 1 else 0.95 * self.average + 0.05 * loss
            rate = each.images_per_second
            eta = (plan.steps - step) * self._images_per_step() / max(rate, 1e-9)
            told = events.Step(step, plan.steps, each.epoch + 1, loss, self.average, lr, norm, rate, eta, memory)
            scalars = {"loss": loss, "loss/average": self.average, "lr": lr, "grad_norm": norm}
            if norms:
                mean, largest = norms
                told = replace(told, weight_norm=mean, weight_norm_max=largest)
                scalars |= {"weight_norm": mean, "weight_norm/max": largest}
            self.job.emit(told)
            self.trackers.scalars(step, scalars)

    def _images_per_step(self) -> float:
        return sum(self.job.plan.buckets.values()) / self.job.plan.steps_per_epoch
