"""Where the files of Anima have the weights that a LoRA changes: a diffusion model by itself, or a checkpoint with all parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..naming.anima_names import block_of, diffusers_to_anima
from ..weights import LoraModule

_DENOISERS = ("net.", "model.diffusion_model.", "model.", "")
_ENCODERS = ("cond_stage_model.qwen3_06b.transformer.model.", "text_encoders.qwen3_06b.transformer.model.", "model.")
_MARK = "blocks.0.cross_attn.k_proj.weight"


def anima_prefix(keys: Mapping[str, object]) -> str | None:
    """The prefix of the denoiser's tensors; None in files of other models."""
    adapter = "llm_adapter.blocks.0.cross_attn.q_proj.weight"
    return next((prefix for prefix in _DENOISERS if prefix + _MARK in keys and prefix + adapter in keys), None)


def text_key(prefix: str) -> str:
    """The key of a weight whose inputs are the text, of a denoiser with that prefix."""
    return prefix + _MARK


def anima_blocks(keys: Iterable[str], prefix: str) -> int:
    """The number of blocks of the denoiser with that prefix."""
    names = (key.removeprefix(prefix) for key in keys if key.startswith(f"{prefix}blocks."))
    return max((index + 1 for name in names if (index := block_of(name)) is not None), default=0)


def key_of_module(keys: Mapping[str, object], prefix: str, module: LoraModule) -> str | None:
    """The key of the weight that ``module`` changes; None when the file does not have it."""
    if module.component == "te1":
        candidates = [f"{encoder}{module.name}.weight" for encoder in _ENCODERS]
    else:
        name = diffusers_to_anima(module.name) if module.component == "unet" else f"llm_adapter.{module.name}"
        candidates = [f"{prefix}{name}.weight"]
    return next((key for key in candidates if key in keys), None)
