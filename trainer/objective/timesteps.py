"""The timestep of one training image, drawn from a generator that is seeded by the image's place in the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..families.flow_sampling import shifted

if TYPE_CHECKING:
    import torch

    from ..config.sections.objective import ObjectiveSection


def draw_discrete(settings: ObjectiveSection, generator: torch.Generator, count: int) -> torch.Tensor:
    """A timestep in ``timestep_min`` .. ``timestep_max`` (exclusive) of ``count``, int64 without dimensions."""
    import torch

    low, high = settings.timestep_min, min(settings.timestep_max, count)
    if settings.timestep_sampling == "uniform":
        return torch.randint(low, high, (), generator=generator)
    return (low + _logit_normal(settings, generator) * (high - low)).long().clamp(low, high - 1)


def draw_continuous(settings: ObjectiveSection, generator: torch.Generator, shift: float, count: int) -> torch.Tensor:
    """A noise level in fp32 without dimensions, in 0..1 or the part of it between ``timestep_min`` and ``timestep_max`` of ``count``.

    ``shift`` moves what was sampled towards noise, before it is mapped into that part.
    """
    draw = _SAMPLING[settings.timestep_sampling]
    low, high = settings.timestep_min / count, min(settings.timestep_max, count) / count
    return low + shifted(draw(settings, generator), shift) * (high - low)


def _uniform(settings: ObjectiveSection, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand((), generator=generator)


def _cosmap(settings: ObjectiveSection, generator: torch.Generator) -> torch.Tensor:
    """Of density 2 / (pi - 2 pi t + 2 pi t^2), which follows the SNR of a cosine schedule (Esser et al. 2024, section 3.1)."""
    import torch

    return 1 - 1 / (torch.tan(math.pi / 2 * torch.rand((), generator=generator)) + 1)


def _logit_normal(settings: ObjectiveSection, generator: torch.Generator) -> torch.Tensor:
    """The sigmoid of a normal random number of mean ``logit_mean`` and deviation ``logit_std`` (Esser et al. 2024, section 3.1)."""
    import torch

    return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.randn((), generator=generator))


_SAMPLING = {"uniform": _uniform, "logit-normal": _logit_normal, "cosmap": _cosmap}  # noise levels in 0..1
