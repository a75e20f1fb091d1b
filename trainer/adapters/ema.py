"""An exponential moving average of the trained weights. When it is on, validation images and the exported file use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Ema:
    """Averages of named parameters, in fp32 on their device: average = d * average + (1 - d) * weight after every step.

    In the first steps d is (1 + step) / (10 + step) while that is less than ``decay``, so that the initial weights lose their influence
    soon. This is the warm-up of TensorFlow's ExponentialMovingAverage and of diffusers' EMAModel. The two matrices are averaged separately.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, step: int) -> None:
        """Add the weights after ``step``; steps count from 1."""
        import torch
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        with torch.no_grad():
            average = get_ema_multi_avg_fn(decay_at(step, self.decay))
            average(list(self._averages.values()), [parameter.detach() for parameter in self._parameters.values()], step)

    def show(self) -> None:
        """Copy the averages into the parameters; the caller saves their values before."""
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._averages[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU, by name."""
        return {name: average.to("cpu", copy=True) for name, average in self._averages.items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what ``state`` returned."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])


def decay_at(step: int, decay: float) -> float:
    """The decay d at ``step``."""
    return min(decay, (1 + step) / (10 + step))
