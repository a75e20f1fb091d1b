"""LoRA layers in the denoiser."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..config.sections.network import NetworkSection
from ..families import Family
from ..lorafile import settings_name
from . import adapter

if TYPE_CHECKING:
    from torch import nn


def adapt_denoiser(denoiser: nn.Module, family: Family, network: NetworkSection, seed: int) -> list[str]:
    """Put LoRA layers into ``denoiser``; returns the modules that have one."""
    targets = family.denoiser_targets(denoiser, network.targets, network.beyond_targets)
    return adapter.adapt(denoiser, targets, network, seed, partial(settings_name, family.name))
