"""How noise turns an image into a training example: the interface of diffusions and rectified flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..config.sections.objective import ObjectiveSection

if TYPE_CHECKING:
    import torch

NOISE_LEVELS = 1000  # ``timestep_min``, ``timestep_max`` and the validation count noise levels in this many parts


class NoiseProcess(Protocol):
    """Latents and noise have shape (batch, channels, h, w) in fp32; timesteps (batch,) are in the form in which ``draw_timestep`` draws
    them."""

    @staticmethod
    def require_meaningful(settings: ObjectiveSection) -> None:
        """Raise UserError, naming the setting to change, where ``settings`` set something that this process does not have."""
        ...

    def draw_timestep(self, settings: ObjectiveSection, generator: torch.Generator, pixels: int) -> torch.Tensor:
        """The timestep of one training image of ``pixels`` pixels, without dimensions."""
        ...

    def timesteps_at(self, levels: Sequence[int]) -> torch.Tensor:
        """The timesteps (levels,) of noise levels from 0, a clean image, up to ``NOISE_LEVELS``."""
        ...

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noisy latents that the denoiser sees."""
        ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict."""
        ...

    def denoiser_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The timesteps as the denoiser takes them."""
        ...

    def loss_weights(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor | None:
        """How much the error at each timestep counts, (batch,); None: all count the same."""
        ...

    def huber_width(self, timesteps: torch.Tensor, settings: ObjectiveSection) -> torch.Tensor:
        """The pseudo-Huber parameter c of each timestep, (batch,)."""
        ...
