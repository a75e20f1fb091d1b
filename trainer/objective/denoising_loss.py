"""The training objective: what the denoiser predicts, its target, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.sections.objective import ObjectiveSection
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..families import Prediction, require_supported
from . import weighting

if TYPE_CHECKING:
    import torch


def chosen_prediction(found: Prediction, settings: ObjectiveSection, name: str = "The checkpoint") -> Prediction:
    """What the denoiser is trained to predict: what was found in the checkpoint ``name``, unless ``settings`` override it.

    Raises UserError for a kind that cannot be trained.
    """
    require_supported(found, name, overridden=settings.prediction != "auto")
    kind = found.kind if settings.prediction == "auto" else settings.prediction.replace("-", "_")
    zero = found.zero_terminal_snr if settings.zero_terminal_snr == "auto" else settings.zero_terminal_snr == "on"
    if kind == "epsilon" and settings.zero_terminal_snr == "on":
        raise UserError(
            Message(
                Setting("objective.zero_terminal_snr"),
                " is on, but this checkpoint predicts the noise, and from pure noise it learns nothing.",
            ),
            Message(
                'Leave it at "auto". If this is a v-prediction checkpoint that does not say so, set ',
                Setting("objective.prediction", "v-prediction"),
                ".",
            ),
            kind="config",
        )
    return Prediction(kind, zero and kind != "epsilon")


def describe_prediction(prediction: Prediction) -> str:
    """``prediction`` in the words of the settings."""
    return prediction.kind.replace("_", "-") + (" with zero terminal SNR" if prediction.zero_terminal_snr else "")


def loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    timesteps: torch.Tensor,
    weights: torch.Tensor,
    masks: torch.Tensor | None,
    settings: ObjectiveSection,
    noise_scheduler: Any,
) -> torch.Tensor:
    """The error in fp32, averaged over each image, weighted by noise level and by image ``weights`` (batch,), averaged over the batch.

    ``masks`` (batch, 1, h, w) in 0..1 weight the error of each latent pixel in an image's mean.
    """
    alphas = noise_scheduler.alphas_cumprod
    width = None if settings.loss == "l2" else weighting.huber_width(settings.huber_schedule, settings.huber_c, alphas, timesteps)
    per_image = mean_by_image(weighting.error(settings.loss, predicted, target, width), masks)
    if settings.min_snr_gamma or settings.debiased:
        velocity = noise_scheduler.config.prediction_type == "v_prediction"
        snr = weighting.signal_to_noise(alphas, timesteps)
        level = weighting.debiased(snr, velocity=velocity) if settings.debiased else None
        per_image = per_image * (weighting.min_snr(snr, settings.min_snr_gamma, velocity=velocity) if level is None else level)
    return (per_image * weights).mean()


def mean_by_image(error: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """The mean of ``error`` (batch, 4, h, w) over each image, (batch,), weighted by ``masks`` (batch, 1, h, w) if there are any."""
    if masks is None:
        return error.mean(dim=(1, 2, 3))
    return (error * masks).sum(dim=(1, 2, 3)) / (masks.sum(dim=(1, 2, 3)) * error.shape[1]).clamp_min(1e-6)


def target(noise_scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The noise, or the velocity for v-prediction (Salimans & Ho 2022, appendix D)."""
    if noise_scheduler.config.prediction_type == "v_prediction":
        velocity: torch.Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return noise
