"""Where the files of Lumina 2 have the weights that a LoRA changes: a checkpoint with all parts, or a diffusion model by itself."""

from __future__ import annotations

from collections.abc import Mapping

from ..weights import LoraModule

_DENOISERS = ("model.diffusion_model.", "diffusion_model.", "")
_ENCODERS = ("text_encoders.gemma2_2b.transformer.model.", "model.")
_MARKS = ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight", "layers.0.adaLN_modulation.1.weight")


def lumina2_prefix(keys: Mapping[str, object]) -> str | None:
    """The prefix of the denoiser's tensors; None in files of other models."""
    return next((prefix for prefix in _DENOISERS if all(prefix + mark in keys for mark in _MARKS)), None)


def text_key(prefix: str) -> str:
    """The key of a weight whose inputs are the text, of a denoiser with that prefix."""
    return prefix + _MARKS[0]


def key_of_module(keys: Mapping[str, object], prefix: str, module: LoraModule) -> str | None:
    """The key of the weight that ``module`` changes; None when the file does not have it."""
    prefixes = (prefix,) if module.component == "unet" else _ENCODERS
    return next((key for each in prefixes if (key := f"{each}{module.name}.weight") in keys), None)
