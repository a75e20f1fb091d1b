"""The models of a run on torch's meta device: shapes without weights, on which parameters and memory are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..adapters.blocks import require_blocks
from ..adapters.denoiser_adapters import adapt_denoiser
from ..adapters.text_adapters import adapt_text
from ..compute import accelerations
from ..compute.acceleration import Context
from ..config.run_config import RunConfig
from ..families import BaseCheckpoint, Family, TextEncoder
from .memory_estimate import memory_needed
from .text_settings import prompt_settings

if TYPE_CHECKING:
    import torch
    from torch import nn


_MOST = 12  # models of 5 to 20 MB each


class MetaModels:
    """Models that were built for plans of one run, and what was counted on them: plans with similar settings share them."""

    def __init__(self) -> None:
        self._models: dict[Any, tuple[nn.Module, TextEncoder | None, list[str]]] = {}
        self._counted: dict[Any, dict[Any, tuple[int, int]]] = {}

    def build(
        self, config: RunConfig, family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, fused: bool
    ) -> tuple[nn.Module, TextEncoder | None, list[str], dict[Any, tuple[int, int]]]:
        """The denoiser with LoRA, the text encoders if they are trained, the names of the trained modules, and what was counted before
        (the ``counted`` of ``memory_needed``). ``fused``: with fused blocks, which need Triton."""
        training = config.training
        limits = (training.base_precision, training.max_tokens, training.clip_skip, config.trains("adapter"))
        key = (checkpoint.path, config.network.model_dump_json(), limits, dtype, fused)
        if key not in self._models:
            while len(self._models) >= _MOST:
                oldest = next(iter(self._models))
                del self._models[oldest]
                self._counted.pop(oldest, None)
            self._models[key] = _build(config, family, checkpoint, dtype, fused)
        return *self._models[key], self._counted.setdefault(key, {})


def memory_of(
    config: RunConfig,
    family: Family,
    checkpoint: BaseCheckpoint,
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    fused: bool = False,
    models: MetaModels | None = None,
) -> dict[str, float]:
    """``memory_needed`` on a GPU for images of ``size`` (width, height), without a dataset. ``models``: those of earlier calls."""
    import torch

    unet, text, _, counted = (models or MetaModels()).build(config, family, checkpoint, dtype, fused)
    needed = memory_needed(unet, family, config, size, dtype, text, counted)
    needed["base"] += accelerations.extra_bytes("swapped_blocks", unet, Context(config, torch.device("cuda"), dtype)) / 1e9
    return needed


def _build(
    config: RunConfig, family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, fused: bool
) -> tuple[nn.Module, TextEncoder | None, list[str]]:
    import torch

    unet = family.empty_denoiser(checkpoint)
    settings = prompt_settings(config, family).in_training
    text = family.empty_text_encoder(checkpoint, settings) if config.trains_text else None
    require_blocks(config.network, family.name, unet, text.modules if text else {})
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    meta = torch.device("meta")
    used = {
        "quantised_base": config.training.base_precision != "same",
        "cosmos_blocks": not config.training.compile,
        "fused_blocks": fused,
    }
    accelerations.prepare([name for name, is_used in used.items() if is_used], unet, Context(config, meta, dtype))
    modules: list[str] = []
    with meta:
        if config.network.unet:
            modules += adapt_denoiser(unet, family, config.network, 0)
        if text is not None:
            modules += adapt_text(text, family, config, 0)
    return unet, text, modules
