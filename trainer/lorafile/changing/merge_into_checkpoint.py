"""Merge LoRAs into a single-file checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.files.writing import atomic_path, remove_abandoned
from ...core.work.progress import counted
from .. import algorithms, container, dora
from ..biases import bias_of, without_bias
from ..family import mismatch
from ..models import reading
from ..unet_names import diffusers_to_ldm
from ..weights import LoraModule, LoraWeights

_UNET = "model.diffusion_model."
_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# where text encoders lie: transformers' layout (SD 1.x, SDXL's first) and OpenCLIP's (SD 2.x, SDXL's second)
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = {"te1": "cond_stage_model.model.transformer.resblocks.", "te2": "conditioner.embedders.1.model.transformer.resblocks."}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
}  # fmt: skip
_OPEN_CLIP_QKV = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


@dataclass(frozen=True)
class _Place:
    """A weight in the checkpoint; ``part`` picks a third of the rows of OpenCLIP's joint q, k, v matrix."""

    key: str
    part: int | None = None


@dataclass(frozen=True)
class _Change:
    """What a LoRA does to a place; ``of_base``: its DoRA has magnitudes for the norm of the unchanged weight."""

    module: LoraModule
    strength: float
    place: _Place
    of_base: bool


def merge_into_checkpoint(checkpoint: Path, parts: Sequence[tuple[LoraWeights, float]], target: Path) -> int:
    """Write ``target``: ``checkpoint`` (.safetensors, original layout) with the LoRAs merged in; the number of weights changed.

    Sums are made in fp32 and rounded once to the checkpoint's number type; everything else is copied. Raises UserError when a LoRA
    was made for another model or a layer is missing.
    """
    checkpoint, target = Path(checkpoint), Path(target)
    if checkpoint.suffix.lower() != ".safetensors" or target.suffix.lower() != ".safetensors":
        raise UserError("LoRAs can be merged into .safetensors checkpoints only.", "Convert the checkpoint first.", kind="checkpoint")
    if target.exists() and target.samefile(checkpoint):
        raise UserError("The merged checkpoint would overwrite the original.", "Choose another output name.", kind="checkpoint")
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {checkpoint}.", "Check the path.", kind="checkpoint")
    header = container.read_header(checkpoint)
    changes = _plan(header, parts)
    remove_abandoned(target.parent)
    with atomic_path(target) as temporary:
        container.copy_with_metadata(checkpoint, temporary, {**header.metadata, **_metadata(header.metadata, parts)})
        start = container.read_header(temporary).data_start
        with temporary.open("r+b") as file:
            for key, layers in counted(changes.items(), f"merging into {target.name}", len(changes)):
                dtype, shape, (begin, end) = header.tensors[key]
                file.seek(start + begin)
                data = bytearray(file.read(end - begin))
                weight = torch.frombuffer(data, dtype=_TORCH[dtype]).reshape(shape)
                merged = _merged(weight.float(), layers).to(weight.dtype)
                if not bool(merged.float().isfinite().all()):
                    raise UserError(f"The merged weight {key} is too large for {dtype}.", "Lower the strength.", kind="checkpoint")
                weight.copy_(merged)
                file.seek(start + begin)
                file.write(data)
    return len(changes)


def _plan(header: container.Header, parts: Sequence[tuple[LoraWeights, float]]) -> dict[str, list[_Change]]:
    """checkpoint key -> what is merged into it; everything is checked before a byte is written."""
    width = next(
        (s[1] for k, (_, s, _) in header.tensors.items() if k.startswith(_UNET) and k.endswith("attn2.to_k.weight") and len(s) > 1), None
    )
    if width is None:
        raise UserError(
            "The checkpoint is no Stable Diffusion checkpoint in the original layout.",
            "Diffusers folders are not supported.",
            kind="checkpoint",
        )
    model_family = reading(width)
    changes: dict[str, list[_Change]] = {}
    missing: list[str] = []
    for weights, strength in parts:
        if weights.context_width not in (None, width):
            raise UserError(
                mismatch(weights.family, model_family or weights.family, weights.context_width, width),
                "Choose a checkpoint of the LoRA's family.",
                kind="lora",
            )
        for module in weights:
            place = _place(header.tensors, weights, module)
            if place is None:
                missing.append(f"{module.component} {module.name}")
                continue
            if (bias := bias_of(module)) is not None:
                beside = replace(place, key=place.key.removesuffix("weight") + "bias")
                rows = header.tensors.get(beside.key, ("", (0,), (0, 0)))[1][0] // (1 if beside.part is None else 3)
                if rows != len(bias):
                    missing.append(f"{module.component} {module.name} (its bias)")
                    continue
                only = replace(module, algorithm="bias", tensors={"diff_b": bias}, alpha=None)
                changes.setdefault(beside.key, []).append(_Change(only, strength, beside, False))
            weight = without_bias(module)
            if weight is not None:
                _check_size(header, place, weight)
                changes.setdefault(place.key, []).append(_Change(weight, strength, place, dora.is_of_base(weights.metadata)))
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} layers that the LoRA changes, for example {', '.join(missing[:3])}.",
            "It is of another kind, or a part (text encoder) was taken out.",
            kind="checkpoint",
        )
    return changes


def _place(tensors: Mapping[str, object], weights: LoraWeights, module: LoraModule) -> _Place | None:
    if module.component == "unet":
        name = diffusers_to_ldm(module.name, weights.unet_layout)
        return _Place(f"{_UNET}{name}.weight") if f"{_UNET}{name}.weight" in tensors else None
    short = module.name.removeprefix("text_model.")
    if module.component == "te1":
        for prefix in _CLIP:
            for name in (module.name, short):
                if f"{prefix}{name}.weight" in tensors:
                    return _Place(f"{prefix}{name}.weight")
    prefix, parts = _OPEN_CLIP[module.component], short.split(".")
    if parts[:2] != ["encoder", "layers"]:
        return None
    layer, inner = parts[2], ".".join(parts[3:])
    if inner in _OPEN_CLIP_QKV:
        place = _Place(f"{prefix}{layer}.attn.in_proj_weight", _OPEN_CLIP_QKV[inner])
    else:
        place = _Place(f"{prefix}{layer}.{_OPEN_CLIP_LAYER.get(inner, inner)}.weight")
    return place if place.key in tensors else None


def _check_size(header: container.Header, place: _Place, module: LoraModule) -> None:
    dtype, shape, _ = header.tensors[place.key]
    if dtype not in _TORCH:
        raise UserError(f"The checkpoint's {place.key} is stored as {dtype}.", "Use a checkpoint in fp16, bf16 or fp32.", kind="checkpoint")
    if module.algorithm in algorithms.PASSED_THROUGH or "reshape_weight" in module.tensors:
        raise UserError(f"{module.name} ({module.algorithm}) cannot be merged into a checkpoint here.", "", kind="lora")
    change = algorithms.delta_shape(module.algorithm, {k: v for k, v in module.tensors.items() if k != "dora_scale"})
    rows = shape[0] // 3 if place.part is not None else shape[0]
    if (rows, *_stripped(shape[1:])) != (change[0], *_stripped(change[1:])) and not _same_count(shape, rows, change):
        raise UserError(
            f"The LoRA's {module.name} is {list(change)} and the checkpoint's {list(shape)}.", "They belong to other models.", kind="lora"
        )
    scale = module.tensors.get("dora_scale")
    if scale is not None and not algorithms.dora_scale_fits(tuple(scale.shape), (rows, *shape[1:])):
        raise UserError(
            f"The LoRA's {module.name} has a dora_scale {list(scale.shape)}, which does not fit the checkpoint's {list(shape)}.",
            "They belong to other models.",
            kind="lora",
        )


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _same_count(shape: Sequence[int], rows: int, change: Sequence[int]) -> bool:
    # LoHa and LoKr of convolutions are stored as matrices (out, in * kh * kw)
    own, other = 1, 1
    for size in shape[1:]:
        own *= size
    for size in change[1:]:
        other *= size
    return rows == change[0] and own == other


def original_weights(checkpoint: Path, weights: LoraWeights) -> Callable[[LoraModule], torch.Tensor]:
    """What gives the weight in ``checkpoint`` (.safetensors, original layout) that a module of ``weights`` changes, in fp32.

    Raises UserError when the LoRA was made for another model or a layer is missing, before anything is read.
    """
    header = container.read_header(checkpoint)
    _plan(header, [(weights, 1.0)])

    def weight(module: LoraModule) -> torch.Tensor:
        place = _place(header.tensors, weights, module)
        assert place is not None
        dtype, shape, (begin, end) = header.tensors[place.key]
        with checkpoint.open("rb") as file:
            file.seek(header.data_start + begin)
            data = bytearray(file.read(end - begin))
        return _part(torch.frombuffer(data, dtype=_TORCH[dtype]).reshape(shape).float(), place)

    return weight


def _part(weight: torch.Tensor, place: _Place) -> torch.Tensor:
    rows = weight.shape[0] // 3
    return weight if place.part is None else weight[place.part * rows : (place.part + 1) * rows]


def _merged(weight: torch.Tensor, layers: Sequence[_Change]) -> torch.Tensor:
    for change in layers:
        module, view = change.module, _part(weight, change.place)
        delta = module.delta().reshape(view.shape)
        if module.is_dora:
            delta = algorithms.apply_dora(view, delta, module.tensors["dora_scale"], of_base=change.of_base) - view
        view += change.strength * delta
    return weight


def _metadata(old: Mapping[str, str], parts: Sequence[tuple[LoraWeights, float]]) -> dict[str, str]:
    titles = [w.metadata.get("modelspec.title") or w.metadata.get("ss_output_name") or "unnamed LoRA" for w, _ in parts]
    merged = [{"title": t, "strength": s, "hash": w.metadata.get("sshs_model_hash", "")} for t, (w, s) in zip(titles, parts, strict=True)]
    base = old.get("modelspec.title")
    return {
        "modelspec.merged_from": ", ".join([*([base] if base else []), *titles]),
        "animelora.merged_loras": json.dumps(merged, ensure_ascii=False),
    }
