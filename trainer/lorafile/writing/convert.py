"""Convert ``LoraWeights`` to the key names of each tool, and write them to a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.files.writing import atomic_path, remove_abandoned
from ...core.messages import ExportOption, Message
from ..comfyui_dora import has_output_magnitudes, uses_base_norm
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..naming.kohya_names import original_name
from ..readers import who_cannot_read
from ..reading.read_lora import scan_lora
from ..weights import LoraModule, LoraWeights
from .converted import Converted, cast, dropped_embeddings, require_family
from .save import write_tensors
from .without_alpha import to_comfyui_without_alpha, to_diffusers, to_peft

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def to_kohya(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """kohya's format, which every program reads; layers of SDXL, Anima and Lumina 2 by their original names. Any algorithm.

    Layers without alpha get one (scale 1).
    """
    tensors: dict[str, torch.Tensor] = dict(weights.extra)
    for module in cast(weights, dtype):
        key = module.kohya_key(require_family(weights), weights.unet_layout)
        tensors.update(_named(module, key))
        if module.alpha is None and module.rank:
            tensors[f"{key}.alpha"] = _new_alpha(module)
    return Converted("kohya", tensors, dict(weights.metadata))


def to_comfyui(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """ComfyUI's own format, as its Save LoRA writes it: ``diffusion_model.`` and original names, ``text_encoders.clip_l.…``. Any algorithm.

    For Anima, alpha is folded into plain LoRA, so that diffusers reads the file too.
    """
    family = require_family(weights)

    def key_of(module: LoraModule) -> str:
        prefixes = FAMILY_LAYOUTS[family].comfyui_prefixes if family in FAMILY_LAYOUTS else {}
        if module.component not in prefixes:
            raise UserError(f"The model family {family!r} has no text encoder {module.component!r}.", "", kind="lora")
        name = original_name(family, module.name, weights.unet_layout) if module.component == "unet" else module.name
        return prefixes[module.component] + name

    if FAMILY_LAYOUTS[family].folds_alpha:
        converted = to_comfyui_without_alpha(weights, dtype, key_of)
        return replace(converted, notes=(*converted.notes, *_dora_in_comfyui(weights)))
    tensors: dict[str, torch.Tensor] = {}
    for module in cast(weights, dtype):
        tensors.update(_named(module, key_of(module)))
    return Converted("comfyui", tensors, dict(weights.metadata), (*dropped_embeddings(weights), *_dora_in_comfyui(weights)))


FORMATS: dict[str, Callable[[LoraWeights, torch.dtype | None], Converted]] = {
    "kohya": to_kohya,
    "diffusers": to_diffusers,
    "peft": to_peft,
    "comfyui": to_comfyui,
}


def convert(weights: LoraWeights, form: str, dtype: torch.dtype | None = None) -> Converted:
    """``weights`` in the format ``form`` (kohya, diffusers, peft or comfyui), converted to ``dtype`` if one is given."""
    if form not in FORMATS:
        raise UserError(f"The LoRA format {form!r} does not exist.", f"Choose one of: {', '.join(FORMATS)}.", kind="lora")
    converted = FORMATS[form](weights, dtype)
    has_alpha = any(key.endswith(".alpha") for key in converted.tensors)
    unread = who_cannot_read(weights.family, form, has_alpha=has_alpha, plain=weights.algorithm == "lora")
    return replace(converted, notes=(*converted.notes, *unread))


def write_lora(path: Path, converted: Converted) -> None:
    """Write a converted LoRA with its hashes to ``path``, atomically, after reading it back. Deletes what killed processes left there."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path.name}: LoRAs can only be written as .safetensors.", "Use that extension.", kind="lora")
    remove_abandoned(path.parent)
    with atomic_path(path) as temporary:
        write_tensors(temporary, converted.tensors, converted.metadata)
        faults = scan_lora(temporary).fatal
        if faults:
            raise UserError(
                f"The converted LoRA would be unusable: {'; '.join(faults)}.",
                Message("Try ", ExportOption("dtype", "fp32"), "."),
                kind="lora",
            )


def _dora_in_comfyui(weights: LoraWeights) -> tuple[str, ...]:
    if uses_base_norm(weights.metadata) or not any(has_output_magnitudes(module) for module in weights):
        return ()
    return (
        "ComfyUI's own loader applies this DoRA a few percent more weakly or strongly than trained; Load LoRA applies it exactly, and so "
        "does ComfyUI with an export for one model (the model and clip inputs of Export LoRA, the option base of the command line)",
    )


def _named(module: LoraModule, key: str) -> dict[str, torch.Tensor]:
    tensors = {f"{key}.{suffix}": tensor for suffix, tensor in module.tensors.items()}
    if module.alpha is not None:
        tensors[f"{key}.alpha"] = module.alpha
    return tensors


def _new_alpha(module: LoraModule) -> torch.Tensor:
    rank, dtype = module.rank or 1, next(iter(module.tensors.values())).dtype
    alpha = torch.tensor(float(rank), dtype=dtype)
    return alpha if float(alpha) == rank else torch.tensor(float(rank), dtype=torch.float32)
