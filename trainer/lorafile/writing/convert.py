"""Convert ``LoraWeights`` to the key names of each tool, and write them to a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.files.writing import atomic_path, remove_abandoned
from ...core.messages import Action, ExportOption, Message
from ..biases import bias_of
from ..comfyui_dora import has_output_magnitudes, uses_base_norm
from ..folded_alpha import FOLDED_ALPHA_KEY, fold
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..naming.unet_names import diffusers_to_ldm
from ..reading.read_lora import scan_lora
from ..weights import LoraModule, LoraWeights
from .save import write_tensors

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_PREFIX = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


@dataclass(frozen=True)
class Converted:
    """A LoRA in one format, ready to write. ``notes`` list what could not be converted exactly."""

    format: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def to_kohya(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """kohya's format, which every program reads; SDXL layers by LDM names. Any algorithm. Layers without alpha get one (scale 1)."""
    tensors: dict[str, torch.Tensor] = dict(weights.extra)
    for module in _cast(weights, dtype):
        key = module.kohya_key(_family(weights), weights.unet_layout)
        tensors.update(_named(module, key))
        if module.alpha is None and module.rank:
            tensors[f"{key}.alpha"] = _new_alpha(module)
    return Converted("kohya", tensors, dict(weights.metadata))


def to_comfyui(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """ComfyUI's own format, as its Save LoRA writes it: ``diffusion_model.`` and LDM names, ``text_encoders.clip_l.…``. Any algorithm."""
    family, tensors = _family(weights), {}
    clips = FAMILY_LAYOUTS[family].clips if family in FAMILY_LAYOUTS else {}
    for module in _cast(weights, dtype):
        if module.component == "unet":
            name = diffusers_to_ldm(module.name, weights.unet_layout)
            if name is None:
                raise UserError(
                    f"The UNet of family {family!r} has no layer {module.name}.", "Was the file made for another model?", kind="lora"
                )
            key = f"diffusion_model.{name}"
        elif module.component in clips:
            key = f"text_encoders.{clips[module.component]}.transformer.{module.name}"
        else:
            raise UserError(f"The model family {family!r} has no text encoder {module.component!r}.", "", kind="lora")
        tensors.update(_named(module, key))
    return Converted("comfyui", tensors, dict(weights.metadata), (*_dropped(weights), *_dora_in_comfyui(weights)))


def to_diffusers(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """The format of diffusers' training scripts (``unet.….lora.down.weight``). Plain LoRA only. alpha is folded into a matrix."""
    _require_plain(weights, "diffusers", decomposed=False)
    return _folded(weights, dtype, "diffusers", _diffusers_key)


def to_peft(weights: LoraWeights, dtype: torch.dtype | None = None) -> Converted:
    """PEFT's format as diffusers saves it today (``unet.….lora_A.weight``). LoRA, and DoRA with magnitudes of outputs."""
    _require_plain(weights, "peft", decomposed=True)
    return _folded(weights, dtype, "peft", _peft_key)


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
    return FORMATS[form](weights, dtype)


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


def _folded(weights: LoraWeights, dtype: torch.dtype | None, form: str, name: Callable[[str, str, str], str]) -> Converted:
    _cast(weights, dtype)  # refuses weights that exceed the number type
    folded = fold(weights.modules, dtype)
    tensors: dict[str, torch.Tensor] = {}
    for module in folded.modules:
        for suffix, tensor in module.tensors.items():
            tensors[name(module.component, module.name, suffix)] = (
                tensor.reshape(_magnitude_shape(tensor)) if suffix == "dora_scale" else tensor
            )
    notes: tuple[str, ...] = ()
    if folded.errors:
        layers = f"{len(folded.errors)} layer{'s' * (len(folded.errors) > 1)}"
        rounded = (
            f"this format has no alpha; multiplying by alpha / rank rounded {layers} (relative error at most {max(folded.errors):.1e})"
        )
        undo = f"{folded.lossy} of them cannot be restored exactly" if folded.lossy else "converting back is exact"
        notes = (Message(f"{rounded}; {undo}; ", ExportOption("dtype", "fp32"), " avoids rounding"),)
    return Converted(form, tensors, {**weights.metadata, FOLDED_ALPHA_KEY: folded.record}, (*notes, *_dropped(weights)))


def _diffusers_key(component: str, module: str, suffix: str) -> str:
    direction = "down" if suffix == "lora_down.weight" else "up"
    part = "lora" if component == "unet" else "lora_linear_layer"
    return f"{_PREFIX[component]}.{module}.{part}.{direction}.weight"


def _peft_key(component: str, module: str, suffix: str) -> str:
    part = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B", "dora_scale": "lora_magnitude_vector"}[suffix]
    return f"{_PREFIX[component]}.{module}.{part}.weight"


def _magnitude_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    # PEFT keeps a row for Linear layers and (1, out, 1, 1) for convolutions
    return (tensor.numel(),) if tensor.ndim == 2 else (1, tensor.numel(), *[1] * (tensor.ndim - 2))


def _require_plain(weights: LoraWeights, form: str, *, decomposed: bool) -> None:
    _family(weights)
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


def _cast(weights: LoraWeights, dtype: torch.dtype | None) -> tuple[LoraModule, ...]:
    if dtype is None:
        return weights.modules
    result = []
    for module in weights:
        tensors = {name: narrowed(name, tensor, dtype) for name, tensor in module.tensors.items()}
        if not all(bool(tensor.float().isfinite().all()) for tensor in tensors.values()):
            raise UserError(
                f"The weights of {module.name} are too large for {dtype}.",
                Message("Choose ", ExportOption("dtype", "bf16"), " or fp32."),
                kind="lora",
            )
        alpha = module.alpha
        if alpha is not None:
            smaller = alpha.to(dtype)
            alpha = smaller if bool(smaller.double() == alpha.double()) else alpha.to(torch.float32)
        result.append(replace(module, tensors=tensors, alpha=alpha))
    return tuple(result)


def narrowed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype``. DoRA's magnitudes never lose bits, because rounding one rounds a whole row of the weight."""
    keeps = not tensor.is_floating_point() or (name == "dora_scale" and dtype.itemsize < tensor.dtype.itemsize)
    return tensor if keeps else tensor.to(dtype)


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


def _family(weights: LoraWeights) -> str:
    if weights.family == "unknown":
        raise UserError(
            "The model family of this LoRA is unknown, so its layers cannot be renamed.",
            Message("Use ", Action.STATE_MODEL, "."),
            kind="lora",
        )
    return weights.family


def _dropped(weights: LoraWeights) -> tuple[str, ...]:
    return (f"{len(weights.extra)} bundled embeddings were left out, because this format cannot hold them",) if weights.extra else ()
