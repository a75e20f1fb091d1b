"""What a LoRA file does to a denoiser, without the trainer's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.lorafile import read_lora
from trainer.lorafile.algorithms.dora import apply_dora


def applied(denoiser: Any, file: Path) -> Any:
    """``denoiser`` with the file's weight changes added in place, by the formulas of the papers alone."""
    for module in read_lora(file):
        layer = denoiser.get_submodule(module.name)
        delta = module.delta().reshape(layer.weight.shape)
        if module.is_dora:
            delta = apply_dora(layer.weight, delta, module.tensors["dora_scale"]) - layer.weight
        with torch.no_grad():
            layer.weight += delta
    return denoiser
