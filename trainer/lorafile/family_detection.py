"""Detect the model family that a LoRA was made for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from .naming.anima_names import anima_module
from .naming.family_layouts import FAMILY_LAYOUTS, FAMILY_TITLES, family_with_text_width
from .naming.lumina2_names import is_in_block
from .weights import LoraModule

# Parts of key names that occur only in other kinds of models.
_FOREIGN = (
    (("double_blocks", "single_blocks", "single_transformer_blocks"), "flux"),
    (("joint_blocks", "context_block"), "sd3"),
    (("lora_prior_unet", "lora_prior_te"), "cascade"),
    (("cross_attn_k.", "cross_attn_k_img", "cross_attn.k.", "cross_attn.k_img", "self_attn.q.lora", "txt_in_individual"), "video"),
    (("transformer.transformer_blocks", "lora_transformer_", "transformer.layers", "diffusion_model.layers"), "dit"),
)


def foreign_family(keys: Iterable[str]) -> str | None:
    """The family of a file for another kind of model, judged by its key names; None when they match none."""
    keys = list(keys)
    for words, family in _FOREIGN:
        if any(word in key for key in keys for word in words):
            return family
    return None


def context_width(modules: Iterable[LoraModule]) -> int | None:
    """The number of inputs of the first cross-attention key projection; None when the file adapts none."""
    for module in modules:
        if module.component == "unet" and module.name.endswith("attn2.to_k"):
            width = _inputs(module.algorithm, module.tensors)
            if width:
                return width
    return None


def detect_family(modules: tuple[LoraModule, ...], metadata: Mapping[str, str]) -> tuple[str, str]:
    """The family (``sd1``, ``sd2``, ``sdxl``, ``anima``, ``lumina2`` or ``unknown``) and the reason for it, in words."""
    if any(module.component == "unet" and is_in_block(module.name) for module in modules):
        return "lumina2", "its layers have the names of Lumina 2's transformer"
    if reason := _why_anima(modules):
        return "anima", reason
    width = context_width(modules)
    if known := family_with_text_width(width):
        return known, f"its cross-attention takes text of width {width}"
    stated = stated_family(metadata)
    if stated:
        detail = f" (its cross-attention takes text of width {width}, as no released model does)" if width else ""
        return stated, f"its metadata states it{detail}"
    if any(module.component == "te2" for module in modules):
        return "sdxl", "it adapts a second text encoder"
    for module in modules:
        parts = module.name.split(".")
        if "transformer_blocks" in parts and int(parts[parts.index("transformer_blocks") + 1]) > 0:
            return "sdxl", "its attention blocks hold several transformer blocks"
    text_widths = {_inputs(m.algorithm, m.tensors) for m in modules if m.component == "te1" and m.name.endswith("_proj")}
    for model in FAMILY_LAYOUTS.values():
        if model.channels and "te2" not in model.prefixes and model.text_width in text_widths:
            return model.family, "the width of its text encoder layers"
    if any(module.component == "unet" and module.name.startswith(("down_blocks.3", "up_blocks.3")) for module in modules):
        return "sd1", "it adapts a fourth level of the UNet, which SDXL does not have. This fits SD 2.x as well"
    return "unknown", "nothing in the file indicates it"


def stated_family(metadata: Mapping[str, str]) -> str:
    """The family that the metadata states; empty when it states no known family."""
    text = metadata.get("ss_base_model_version", "") + " " + metadata.get("modelspec.architecture", "")
    return next((model.family for model in FAMILY_LAYOUTS.values() if any(_has_word(text, word) for word in model.stated)), "")


def _has_word(text: str, word: str) -> bool:
    """Whether ``text`` holds ``word`` and not as a part of a longer one, as Animagine holds "anima"."""
    return re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", text.lower()) is not None


def _why_anima(modules: Iterable[LoraModule]) -> str:
    """Why a file is for Anima, judged by module names, which no UNet has; empty when it is not."""
    names = {(module.component, module.name) for module in modules}
    if any(component == "unet" and anima_module("unet", name) for component, name in names):
        return "its layers have the names of Anima's transformer"
    if any(component == "adapter" for component, _ in names):
        return "it adapts Anima's text adapter"
    return "it adapts Qwen3" if any(component == "te1" and anima_module("te1", name) for component, name in names) else ""


def mismatch(family: str, model_family: str, width: int | None = None, model_width: int | None = None) -> str:
    """Why a LoRA of ``family`` does not fit a model of ``model_family``; empty when it does. Text widths are optional."""
    same_width = width is None or model_width is None or width == model_width
    if family in (model_family, "unknown") and same_width:
        return ""
    reads = f" (its cross-attention takes text of width {width})" if width and not same_width else ""
    wants = f" (with text of width {model_width})" if model_width and not same_width else ""
    why = "their layers have different sizes" if reads or family == model_family else "they have different layers"
    return (
        f"This LoRA was made for {FAMILY_TITLES.get(family, family)}{reads} and the model is "
        f"{FAMILY_TITLES.get(model_family, model_family)}{wants}: {why}."
    )


def _inputs(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    if algorithm == "lora":
        return int(tensors["lora_down.weight"].shape[1])
    if algorithm == "loha":
        return int(tensors["hada_w1_b"].shape[1])
    if algorithm == "lokr":
        first = tensors.get("lokr_w1", tensors.get("lokr_w1_b"))
        second = tensors.get("lokr_w2", tensors.get("lokr_w2_b"))
        if first is not None and second is not None and first.ndim > 1 and second.ndim > 1:
            return int(first.shape[1] * second.shape[1])
    if algorithm == "full":
        return int(tensors["diff"].shape[1]) if tensors["diff"].ndim > 1 else None
    return None
