"""The noise of one training image, drawn from a generator that is seeded by the image's place in the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..config.sections.objective import ObjectiveSection


def draw_noise(shape: tuple[int, ...], settings: ObjectiveSection, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise of ``shape`` (channels, h, w), with multi-resolution noise and a noise offset if they are set."""
    import torch

    noise = torch.randn(shape, generator=generator)
    if settings.multires_iterations:
        noise = _multires(noise, settings.multires_iterations, settings.multires_discount, generator)
    if settings.noise_offset:  # CrossLabs, "Diffusion with Offset Noise" (2023): one shift per channel
        noise = noise + settings.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise


def _multires(noise: torch.Tensor, iterations: int, discount: float, generator: torch.Generator) -> torch.Tensor:
    """Pyramid noise: noise of lower and lower resolution is added, then all is scaled to unit deviation (J. Whitaker, "Multi-Resolution
    Noise", 2023).

    The deviation is that of the image, where kohya's trainer takes the batch's: an image's noise does not depend on others in its batch.
    """
    import torch
    from torch.nn.functional import interpolate

    channels, height, width = noise.shape
    for level in range(iterations):
        shrink = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        small = (max(1, int(height / shrink)), max(1, int(width / shrink)))
        coarse = torch.randn((1, channels, *small), generator=generator)
        noise = noise + interpolate(coarse, size=(height, width), mode="bilinear")[0] * discount**level
        if 1 in small:  # as in the author's code and kohya's: there is no lower resolution
            break
    return noise / noise.std()
