"""A model of one parameter whose passes are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.compute.cuda_graphs.cuda_recorder import LossAndGradients
from trainer.compute.cuda_graphs.recorded_passes import RecordedPasses


class Repeating:
    """Stands in for ``CudaRecorder``; counts recordings and replays of all of its kind."""

    recorded = replayed = 0
    places: frozenset[int] = frozenset()  # where the gradients of all recordings lie

    def __call__(self, compute: Callable[[], LossAndGradients]) -> tuple[Callable[[], None], LossAndGradients]:
        kept = compute()
        type(self).recorded += 1
        type(self).places |= {gradient.data_ptr() for gradient in kept[1] if gradient is not None}

        def replay() -> None:
            type(self).replayed += 1
            loss, gradients = compute()
            kept[0].copy_(loss)
            for place, gradient in zip(kept[1], gradients, strict=True):
                assert (place is None) == (gradient is None)
                if place is not None and gradient is not None:
                    place.copy_(gradient)

        return replay, kept


class Small:
    """A model of one parameter, and what happened to its recordings."""

    def __init__(self, record: Any = None, eager_passes: int = 1) -> None:
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.warnings: list[str] = []
        self.short = False
        self.passes = RecordedPasses(self.compute, [self.weight], self.warnings.append, record or Repeating(), eager_passes=eager_passes)

    def compute(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.short and self.passes._recordings:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        loss = (self.weight * inputs["x"]).sum()
        return loss, loss

    def gradient(self, x: torch.Tensor) -> float:
        self.weight.grad = None
        self.passes.run({"x": x})
        (gradient,) = [parameter.grad for parameter in [self.weight]]
        assert gradient is not None
        return float(gradient)
