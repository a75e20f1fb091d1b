"""The models of a family for which diffusers has no pipeline, loaded one by one, with LoRA files added to their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.frozen_lora import merge_into
from ..core.errors import UserError
from ..families import BaseCheckpoint, Family, TextSettings
from ..lorafile import read_lora

if TYPE_CHECKING:
    import torch


class SeparateModels:
    """Has the attributes of a diffusers pipeline that ``ImageGenerator`` uses: ``unet`` is the denoiser."""

    def __init__(
        self, family: Family, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings
    ) -> None:
        import torch

        self.text_encoder = family.load_text_encoder(checkpoint, dtype, device, settings)
        self.unet: Any = family.load_denoiser(checkpoint, dtype).to(device)
        self.vae: Any = family.load_vae(checkpoint, torch.float32).to(device)
        self._original: dict[torch.nn.Parameter, torch.Tensor] = {}

    def apply_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Add these LoRA files, each with its strength, to the original weights. Raises UserError for a file that does not fit."""
        import torch

        with torch.no_grad():
            for parameter, value in self._original.items():
                parameter.copy_(value)
        models = {"unet": self.unet, **self.text_encoder.modules}
        for path, strength in loras:
            modules = list(read_lora(path))
            for module in modules:
                self._remember(models.get(module.component), module.name)
            try:
                merge_into(models, modules, strength)
            except UserError as error:
                raise UserError(
                    f"{path.name} does not fit this checkpoint: {error.message}",
                    f"See what it is with: python -m trainer info {path}",
                    kind="lora",
                ) from error

    def _remember(self, model: Any, name: str) -> None:
        try:
            weight = model.get_submodule(name).weight
        except AttributeError:  # merging it reports the layer
            return
        self._original.setdefault(weight, weight.detach().clone())
