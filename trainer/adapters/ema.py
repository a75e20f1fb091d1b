"""An exponential moving average of the trained weights: what samples and the exported file show when it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Ema:
    """Averages of named parameters, in fp32 on their device: average = d * average + (1 - d) * weight after every step.

    In the first steps d is (1 + step) / (10 + step) while that is less than ``decay``, so that the untrained start does not linger: the
    warm-up of TensorFlow's ExponentialMovingAverage and of diffusers' EMAModel. Both matrices are averaged, each for itself.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights after ``step``, the first of which is 1."""
        import torch
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        with torch.no_grad():
            average = get_ema_multi_avg_fn(decay_at(step, self.decay))
            average(list(self._averages.values()), [parameter.detach() for parameter in self._parameters.values()], step)

    def show(self) -> None:
        """Put the averages into the parameters; the caller keeps what was there."""
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._averages[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU, by name."""
        return {name: average.to("cpu", copy=True) for name, average in self._averages.items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``state`` gave."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])


def decay_at(step: int, decay: float) -> float:
    """The weight of the past at ``step``."""
    return min(decay, (1 + step) / (10 + step))
