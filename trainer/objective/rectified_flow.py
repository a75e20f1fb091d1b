"""Rectified flow: a straight path from latents to noise, whose velocity the denoiser predicts (Liu et al. 2022; Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config.sections.objective import ObjectiveSection
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..families import Flow
from . import weighting
from .noise_process import NOISE_LEVELS
from .timesteps import draw_continuous

if TYPE_CHECKING:
    import torch

# settings that only a diffusion has, their neutral values, and why a flow has none of them
_OF_DIFFUSION = (
    ("min_snr_gamma", 0.0, "weighs by the signal-to-noise ratios of a diffusion"),
    ("debiased", False, "weighs by the signal-to-noise ratios of a diffusion"),
    ("noise_offset", 0.0, "makes up for a diffusion that never sees pure noise, as a flow does"),
    ("multires_iterations", 0, "makes up for a diffusion that never sees pure noise, as a flow does"),
)


class RectifiedFlow:
    """A ``NoiseProcess`` whose timesteps are noise levels in 0..1, fp32: bf16 would move them by up to 0.002."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @staticmethod
    def require_meaningful(settings: ObjectiveSection) -> None:
        """Refuse what only diffusions have."""
        for name, neutral, why in _OF_DIFFUSION:
            if getattr(settings, name) != neutral:
                setting = Setting(f"objective.{name}")
                hint = Message("Set ", Setting(f"objective.{name}", neutral), ".")
                raise UserError(Message(setting, f" {why}, and this model is trained as a rectified flow."), hint, kind="config")
        if settings.zero_terminal_snr == "on":
            setting = Setting("objective.zero_terminal_snr")
            hint = Message("Set ", Setting("objective.zero_terminal_snr", "auto"), ".")
            raise UserError(Message(setting, " is for diffusions: a rectified flow ends in pure noise anyway."), hint, kind="config")

    def draw_timestep(self, settings: ObjectiveSection, generator: torch.Generator, pixels: int) -> torch.Tensor:
        """A level in ``timestep_min`` .. ``timestep_max`` thousandths, sampled and shifted as ``settings`` say."""
        shift = settings.timestep_shift
        if settings.resolution_shift:  # Esser et al. 2024, equation 23: the square root of the ratio of pixel numbers
            shift *= (pixels / self._flow.resolution**2) ** 0.5
        return draw_continuous(settings, generator, shift, NOISE_LEVELS)

    def timesteps_at(self, levels: Sequence[int]) -> torch.Tensor:
        """The levels in 0..1."""
        import torch

        return torch.tensor(levels, dtype=torch.float32) / NOISE_LEVELS

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """(1 - t) latents + t noise."""
        level = timesteps.view(-1, *[1] * (latents.dim() - 1))
        return (1 - level) * latents + level * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity of the path, noise - latents, which is the same at every timestep."""
        return noise - latents

    def denoiser_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The levels times the multiplier of the family."""
        return timesteps * self._flow.timestep_multiplier

    def loss_weights(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor | None:
        """None: Stable Diffusion 3's weights of noise levels are densities from which the levels are drawn."""
        return None

    def huber_width(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor:
        """With the deviation of the noise relative to the image, t / (1 - t)."""
        sigma = timesteps / (1 - timesteps).clamp_min(1e-6)
        return weighting.huber_width(settings.huber_schedule, settings.huber_c, timesteps * NOISE_LEVELS, sigma)
