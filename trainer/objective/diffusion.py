"""Diffusion in discrete timesteps (DDPM), for models that predict the noise or the velocity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.sections.objective import ObjectiveSection
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..families import EPSILON, Prediction
from . import weighting
from .noise_process import NOISE_LEVELS
from .timesteps import draw_discrete

if TYPE_CHECKING:
    import torch


class Diffusion:
    """A ``NoiseProcess`` with timesteps 0..999 (int64). diffusers' scheduler adds the noise, with the betas of ``beta_schedule``."""

    def __init__(self, beta_schedule: Mapping[str, Any], prediction: Prediction = EPSILON) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        zero = prediction.zero_terminal_snr
        self.scheduler: Any = DDPMScheduler(**beta_schedule, prediction_type=prediction.kind, rescale_betas_zero_snr=zero)
        self._predicts_velocity = prediction.kind == "v_prediction"
        self._alphas: torch.Tensor = self.scheduler.alphas_cumprod

    @staticmethod
    def require_meaningful(settings: ObjectiveSection) -> None:
        """Refuse what only rectified flows have."""
        of_flows = (("timestep_shift", 1.0), ("resolution_shift", False))
        changed: dict[str, float | bool | str] = {name: neutral for name, neutral in of_flows if getattr(settings, name) != neutral}
        if settings.timestep_sampling == "cosmap":
            changed["timestep_sampling"] = "uniform"
        for name, neutral in changed.items():
            setting, reset = Setting(f"objective.{name}"), Setting(f"objective.{name}", neutral)
            what = Message(setting, " has a value for rectified flows, and this model is trained as a diffusion.")
            raise UserError(what, Message("Set ", reset, "."), kind="config")

    def draw_timestep(self, settings: ObjectiveSection, generator: torch.Generator, pixels: int) -> torch.Tensor:
        """An int64 in ``timestep_min`` .. ``timestep_max`` (exclusive)."""
        return draw_discrete(settings, generator, NOISE_LEVELS)

    def timesteps_at(self, levels: Sequence[int]) -> torch.Tensor:
        """The levels themselves."""
        import torch

        return torch.tensor(levels)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(alpha) latents + sqrt(1 - alpha) noise (Ho et al. 2020, equation 4)."""
        noisy: torch.Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise, or the velocity for v-prediction (Salimans & Ho 2022, appendix D)."""
        if self._predicts_velocity:
            velocity: torch.Tensor = self.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        return noise

    def denoiser_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The timesteps themselves."""
        return timesteps

    def loss_weights(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor | None:
        """Min-SNR weights, those of debiased estimation, or None."""
        if not (settings.min_snr_gamma or settings.debiased):
            return None
        snr = weighting.signal_to_noise(self._alphas, timesteps)
        if settings.debiased:
            return weighting.debiased(snr, velocity=self._predicts_velocity)
        return weighting.min_snr(snr, settings.min_snr_gamma, velocity=self._predicts_velocity)

    def huber_width(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor:
        """With the deviation of the noise relative to the image, sqrt((1 - alpha) / alpha)."""
        alphas = self._alphas.to(timesteps.device)[timesteps]
        sigma = ((1 - alphas) / alphas.clamp_min(1e-12)).sqrt()
        return weighting.huber_width(settings.huber_schedule, settings.huber_c, timesteps.float(), sigma)
