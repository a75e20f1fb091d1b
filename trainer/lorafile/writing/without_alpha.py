"""The formats without alpha: those of diffusers and PEFT, which hold plain LoRA only, and ComfyUI's for Anima."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...core.errors import UserError
from ...core.messages import ExportOption, Message
from ..biases import bias_of
from ..comfyui_dora import uses_base_norm
from ..folded_alpha import FOLDED_ALPHA_KEY, Folded, fold
from ..naming.family_layouts import FAMILY_LAYOUTS, diffusers_prefixes_of
from ..weights import LoraModule, LoraWeights
from .converted import Converted, cast, dropped_embeddings, require_family

_UNETS = tuple(model.family for model in FAMILY_LAYOUTS.values() if model.channels)
_PEFT_PARTS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def to_diffusers(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """The format of diffusers' training scripts (``unet.….lora.down.weight``; for transformers, that of ``to_peft``). Plain LoRA only.
    alpha is folded into a matrix."""
    _require_plain(weights, "diffusers", decomposed=False)
    return _folded(weights, dtype, "diffusers", _diffusers_key if require_family(weights) in _UNETS else _peft_key)


def to_peft(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """PEFT's format as diffusers saves it today (``unet.….lora_A.weight``). LoRA, and DoRA with magnitudes of outputs."""
    _require_plain(weights, "peft", decomposed=True)
    return _folded(weights, dtype, "peft", _peft_key)


def to_comfyui_without_alpha(weights: LoraWeights, dtype: torch.dtype | None, key_of: Callable[[LoraModule], str]) -> Converted:
    """ComfyUI's names and PEFT's tensors (``diffusion_model.….lora_A.weight``), which diffusers reads as well.

    Magnitudes of DoRA and all other algorithms have LyCORIS' tensor names and keep their alpha. ``key_of`` returns the key of a module
    without suffix.
    """
    cast(weights, dtype)
    folded = fold(weights.modules, dtype)
    tensors: dict[str, torch.Tensor] = {}
    for module in folded.modules:
        key = key_of(module)
        parts = _PEFT_PARTS if module.algorithm == "lora" and "lora_mid.weight" not in module.tensors else {}
        tensors |= {f"{key}.{parts.get(suffix, suffix)}": tensor for suffix, tensor in module.tensors.items()}
        if module.alpha is not None:
            tensors[f"{key}.alpha"] = module.alpha
    metadata = {**weights.metadata, FOLDED_ALPHA_KEY: folded.record}
    return Converted("comfyui", tensors, metadata, (*_rounding(folded), *dropped_embeddings(weights)))


def _folded(weights: LoraWeights, dtype: torch.dtype | None, form: str, key_of: Callable[[str, str, str], str]) -> Converted:
    cast(weights, dtype)  # refuses weights that exceed the number type
    prefixes = diffusers_prefixes_of(weights.family)
    if not prefixes:
        raise UserError(
            f"The {form} format has diffusers' names, but {FAMILY_LAYOUTS[weights.family].title} has other layers there than in this file.",
            Message("Choose ", ExportOption("format", "kohya"), " or comfyui."),
            kind="lora",
        )
    readable = tuple(module for module in weights if module.component in prefixes)
    if not readable:
        raise UserError("diffusers can load no layer of this LoRA, because it changes only Qwen3.", "Export it as kohya.", kind="lora")
    folded = fold(readable, dtype)
    tensors: dict[str, torch.Tensor] = {}
    for module in folded.modules:
        for suffix, tensor in module.tensors.items():
            tensors[key_of(prefixes[module.component], module.name, suffix)] = (
                tensor.reshape(_magnitude_shape(tensor)) if suffix == "dora_scale" else tensor
            )
    left = len(weights.modules) - len(readable)
    notes = (f"{left} layers of Qwen3 were left out, because diffusers cannot load them",) if left else ()
    metadata = {**weights.metadata, FOLDED_ALPHA_KEY: folded.record}
    return Converted(form, tensors, metadata, (*_rounding(folded), *notes, *dropped_embeddings(weights)))


def _rounding(folded: Folded) -> tuple[str, ...]:
    """A note about layers that folding alpha rounded."""
    if not folded.errors:
        return ()
    layers = f"{len(folded.errors)} layer{'s' * (len(folded.errors) > 1)}"
    rounded = f"this format has no alpha; multiplying by alpha / rank rounded {layers} (relative error at most {max(folded.errors):.1e})"
    undo = f"{folded.lossy} of them cannot be restored exactly" if folded.lossy else "converting back is exact"
    return (Message(f"{rounded}; {undo}; ", ExportOption("dtype", "fp32"), " avoids rounding"),)


def _diffusers_key(prefix: str, module: str, suffix: str) -> str:
    direction = "down" if suffix == "lora_down.weight" else "up"
    part = "lora" if prefix == "unet." else "lora_linear_layer"
    return f"{prefix}{module}.{part}.{direction}.weight"


def _peft_key(prefix: str, module: str, suffix: str) -> str:
    return f"{prefix}{module}.{_PEFT_PARTS.get(suffix, 'lora_magnitude_vector.weight')}"


def _magnitude_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    # PEFT keeps a row for Linear layers and (1, out, 1, 1) for convolutions
    return (tensor.numel(),) if tensor.ndim == 2 else (1, tensor.numel(), *[1] * (tensor.ndim - 2))


def _require_plain(weights: LoraWeights, form: str, *, decomposed: bool) -> None:
    require_family(weights)
    if decomposed and uses_base_norm(weights.metadata):
        raise UserError(
            "This DoRA was exported for ComfyUI's own loader and one base model; other programs would read it wrongly.",
            "Convert the original LoRA instead.",
            kind="lora",
        )
    for module in weights:
        if bias_of(module) is not None or "reshape_weight" in module.tensors:
            what = "changes its bias" if bias_of(module) is not None else "changes the size of its layer"
            raise UserError(
                f"The {form} format holds only weight changes, but {module.name} also {what}.",
                Message("Choose ", ExportOption("format", "kohya"), " or comfyui, which can hold it unchanged."),
                kind="lora",
            )
        if module.algorithm != "lora" or "lora_mid.weight" in module.tensors:
            kind = "LoRA in Tucker form" if module.algorithm == "lora" else module.algorithm
            raise UserError(
                f"The {form} format holds only plain LoRA, but {module.name} is {kind}.",
                Message(
                    "Approximate it with ",
                    ExportOption("rank"),
                    ", or choose ",
                    ExportOption("format", "kohya"),
                    " or comfyui, which can hold it unchanged.",
                ),
                kind="lora",
            )
        if not module.is_dora:
            continue
        if not decomposed:
            raise UserError(
                f"The {form} format cannot hold DoRA.",
                Message("Choose ", ExportOption("format", "peft"), ", kohya or comfyui."),
                kind="lora",
            )
        scale, outputs = module.tensors["dora_scale"], module.tensors["lora_up.weight"].shape[0]
        if scale.shape[0] != outputs or scale.numel() != outputs:
            raise UserError(
                f"PEFT's DoRA scales outputs, but {module.name} scales inputs.",
                Message("Choose ", ExportOption("format", "kohya"), " or comfyui."),
                kind="lora",
            )
