"""The training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.sections.objective import ObjectiveSection
from . import weighting
from .noise_process import NoiseProcess

if TYPE_CHECKING:
    import torch


def loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    timesteps: torch.Tensor,
    weights: torch.Tensor,
    masks: torch.Tensor | None,
    settings: ObjectiveSection,
    process: NoiseProcess,
) -> torch.Tensor:
    """The error in fp32, averaged over each image, weighted by noise level and by image ``weights`` (batch,), averaged over the batch.

    ``masks`` (batch, 1, h, w) in 0..1 weight the error of each latent pixel in an image's mean.
    """
    width = None if settings.loss == "l2" else process.huber_width(timesteps, settings)
    per_image = mean_by_image(weighting.error(settings.loss, predicted, target, width), masks)
    by_level = process.loss_weights(timesteps, settings)
    if by_level is not None:
        per_image = per_image * by_level
    return (per_image * weights).mean()


def mean_by_image(error: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """The mean of ``error`` (batch, channels, h, w) over each image, (batch,), weighted by ``masks`` (batch, 1, h, w) if there are any."""
    if masks is None:
        return error.mean(dim=(1, 2, 3))
    return (error * masks).sum(dim=(1, 2, 3)) / (masks.sum(dim=(1, 2, 3)) * error.shape[1]).clamp_min(1e-6)
