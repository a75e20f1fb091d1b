"""Loss weights of noise levels, and the error functions: pure functions, each from a paper.

``snr`` is the signal-to-noise ratio of a timestep, alphas_cumprod / (1 - alphas_cumprod); tensors have shape (batch,).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SNR_LIMIT = 1000.0  # keeps the debiased weight finite at the first timesteps


def signal_to_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR of each timestep; zero at the last one of a zero-terminal-SNR schedule."""
    alphas = alphas_cumprod.to(timesteps.device, dtype=alphas_cumprod.dtype)[timesteps]
    return alphas / (1 - alphas)


def min_snr(snr: torch.Tensor, gamma: float, *, velocity: bool) -> torch.Tensor:
    """Min-SNR-gamma (Hang et al. 2023, section 3.4): min(snr, gamma) / snr for epsilon, / (snr + 1) for v-prediction."""
    if velocity:
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr.clamp_min(1e-12)).clamp(max=1)  # the same as min(snr, gamma) / snr, and finite at zero SNR


def debiased(snr: torch.Tensor, *, velocity: bool) -> torch.Tensor:
    """Debiased estimation (Yu et al. 2023): 1 / sqrt(snr) for epsilon, 1 / (snr + 1) for v-prediction; snr is cut at 1000."""
    limited = snr.clamp(max=_SNR_LIMIT)
    return 1 / (limited + 1) if velocity else limited.clamp_min(1e-8).rsqrt()


def huber_width(schedule: str, base: float, timesteps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The pseudo-Huber parameter c of ``timesteps`` in 0..1000 (Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption
    Resistance").

    ``constant``: ``base``; ``exponential``: from 1 at timestep 0 down to ``base`` at the end; ``snr``: from 1 at no noise towards
    ``base`` at full noise, (1 - base) / (1 + sigma)^2 + base, where ``sigma`` is the deviation of the noise relative to the image.
    """
    import torch

    if schedule == "exponential":
        return torch.exp(math.log(base) * timesteps / 1000)
    if schedule == "snr":
        return (1 - base) / (1 + sigma) ** 2 + base
    return torch.full(timesteps.shape, base, device=timesteps.device)


def error(kind: str, predicted: torch.Tensor, target: torch.Tensor, width: torch.Tensor | None = None) -> torch.Tensor:
    """The error of each element in fp32, the shape of ``predicted`` (batch, channels, h, w).

    ``l2``: the square. ``huber``: 2 c (sqrt(d^2 + c^2) - c), which is d^2 for small d. ``smooth_l1``: 2 (sqrt(d^2 + c^2) - c),
    which is 2 |d| for large d. ``width`` (batch,) is c.
    """
    difference = predicted.float() - target.float()
    if kind == "l2":
        return difference**2
    assert width is not None
    c = width.view(-1, 1, 1, 1)
    rounded = 2 * ((difference**2 + c**2).sqrt() - c)
    return c * rounded if kind == "huber" else rounded
