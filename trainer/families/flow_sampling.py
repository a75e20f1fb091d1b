"""Euler's method for a rectified flow, at the noise levels at which ComfyUI samples it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LEVELS = 1000  # ComfyUI samples at this many noise levels


def shifted(level: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels in 0..1, moved towards noise by ``shift``: s t / (1 + (s - 1) t) (Esser et al. 2024, section 5.3.2)."""
    return shift * level / (1 + (shift - 1) * level)


class FlowEuler:
    """Takes Euler steps along the velocity of a rectified flow. The interface is that of diffusers' schedulers, as far as sampling uses it.

    ``sigmas`` (steps + 1,) are the noise levels from 1 down to 0, ComfyUI's scheduler ``simple``; ``timesteps`` (steps,) are what the
    denoiser is given for them.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, shift: float, timestep_multiplier: float) -> None:
        self.shift, self.timestep_multiplier = shift, timestep_multiplier

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Divide the way from noise to image into so many steps, even before the shift."""
        import torch

        levels = [_LEVELS - int(index * (_LEVELS / num_inference_steps)) for index in range(num_inference_steps)]
        sigmas = shifted(torch.tensor(levels, dtype=torch.float32, device=device) / _LEVELS, self.shift)
        self.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        self.timesteps = sigmas * self.timestep_multiplier
        self.set_begin_index(0)

    def set_begin_index(self, begin_index: int) -> None:
        """Take the next step from this index of ``sigmas``."""
        self._index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """``sample`` itself: the denoiser of a flow takes noisy latents as they are."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents at the noise levels of ``timesteps`` (batch,)."""
        level = (timesteps / self.timestep_multiplier).view(-1, *[1] * (noise.dim() - 1))
        return (1 - level) * original_samples + level * noise

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, *, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """The latents after one step, in a tuple as diffusers returns them."""
        change = float(self.sigmas[self._index + 1] - self.sigmas[self._index])
        self._index += 1
        return (sample + change * model_output,)
