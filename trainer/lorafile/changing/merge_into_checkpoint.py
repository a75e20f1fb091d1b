"""Merge LoRAs into a single-file checkpoint, with one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.files.writing import atomic_path, remove_abandoned
from ...core.messages import File, Message
from ...core.work.progress import track
from .. import container
from ..algorithms.dora import apply_dora
from ..anima_depth import depth_mismatch
from ..biases import bias_of, without_bias
from ..comfyui_dora import uses_base_norm
from ..family_detection import mismatch
from ..naming.family_layouts import FAMILY_LAYOUTS, family_with_text_width
from ..weights import LoraModule, LoraWeights
from .anima_checkpoint import anima_blocks, anima_prefix
from .checkpoint_weights import (
    TORCH_DTYPES,
    CheckpointWeight,
    reader_of_weights,
    require_fit,
    text_width,
    transformer_family,
    weight_of_module,
)  # fmt: skip

_TRANSFORMERS = tuple(model.family for model in FAMILY_LAYOUTS.values() if not model.channels)


@dataclass(frozen=True)
class _Change:
    """How a LoRA changes a weight. ``of_base``: its DoRA magnitudes belong to the norm of the unchanged weight."""

    module: LoraModule
    strength: float
    weight: CheckpointWeight
    of_base: bool


def merge_into_checkpoint(checkpoint: Path, parts: Sequence[tuple[LoraWeights, float]], target: Path) -> int:
    """Write ``checkpoint`` (.safetensors, original layout) with the LoRAs merged in to ``target``. Returns the number of changed weights.

    Sums are computed in fp32 and rounded once to the checkpoint's number type. Everything else is copied. Raises UserError when a LoRA was
    made for another model or a layer is missing.
    """
    checkpoint, target = Path(checkpoint), Path(target)
    if checkpoint.suffix.lower() != ".safetensors" or target.suffix.lower() != ".safetensors":
        raise UserError("LoRAs can be merged into .safetensors checkpoints only.", "Convert the checkpoint first.", kind="checkpoint")
    if target.exists() and target.samefile(checkpoint):
        raise UserError("The merged checkpoint would overwrite the original.", "Choose another output name.", kind="checkpoint")
    if not checkpoint.is_file():
        raise UserError(Message("The checkpoint ", File(str(checkpoint)), " does not exist."), "Check the path.", kind="checkpoint")
    header = container.read_safetensors_header(checkpoint)
    changes = _plan(header, parts)
    remove_abandoned(target.parent)
    with atomic_path(target) as temporary:
        container.copy_with_metadata(checkpoint, temporary, {**header.metadata, **_metadata(header.metadata, parts)})
        start = container.read_safetensors_header(temporary).data_start
        with temporary.open("r+b") as file:
            for key, layers in track(changes.items(), f"merging into {target.name}", len(changes)):
                dtype, shape, (begin, end) = header.tensors[key]
                file.seek(start + begin)
                data = bytearray(file.read(end - begin))
                weight = torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)
                merged = _merged(weight.float(), layers).to(weight.dtype)
                if not bool(merged.float().isfinite().all()):
                    raise UserError(f"The merged weight {key} is too large for {dtype}.", "Lower the strength.", kind="checkpoint")
                weight.copy_(merged)
                file.seek(start + begin)
                file.write(data)
    return len(changes)


def _plan(header: container.SafetensorsHeader, parts: Sequence[tuple[LoraWeights, float]]) -> dict[str, list[_Change]]:
    """The changes of each tensor by its key. All checks come before the first byte is written."""
    width = text_width(header)
    transformer = transformer_family(header.tensors)
    model_family = transformer or family_with_text_width(width)
    changes: dict[str, list[_Change]] = {}
    missing: list[str] = []
    for weights, strength in parts:
        made_for = weights.family if weights.family in _TRANSFORMERS else ""
        if weights.context_width not in (None, width) or made_for != transformer:
            raise UserError(
                mismatch(weights.family, model_family or ("unknown" if made_for else weights.family), weights.context_width, width),
                "Choose a checkpoint of the LoRA's family.",
                kind="lora",
            )
        if (prefix := anima_prefix(header.tensors)) is not None:
            wrong = depth_mismatch(weights.blocks, anima_blocks(header.tensors, prefix), weights.metadata)
            if wrong:
                raise wrong
        for module in weights:
            target = weight_of_module(header.tensors, weights, module)
            if target is None:
                missing.append(f"{module.component} {module.name}")
                continue
            if (bias := bias_of(module)) is not None:
                target_bias = replace(target, key=target.key.removesuffix("weight") + "bias")
                if target_bias.key not in header.tensors or target_bias.rows(header) != len(bias):
                    missing.append(f"{module.component} {module.name} (its bias)")
                    continue
                only = replace(module, algorithm="bias", tensors={"diff_b": bias}, alpha=None)
                changes.setdefault(target_bias.key, []).append(_Change(only, strength, target_bias, False))
            weight = without_bias(module)
            if weight is not None:
                require_fit(header, target, weight)
                changes.setdefault(target.key, []).append(_Change(weight, strength, target, uses_base_norm(weights.metadata)))
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} layers that the LoRA changes, for example {', '.join(missing[:3])}.",
            "It is another kind of model, or a part such as the text encoder was removed from it.",
            kind="checkpoint",
        )
    return changes


def checkpoint_weights(checkpoint: Path, weights: LoraWeights) -> Callable[[LoraModule], torch.Tensor]:
    """A function that returns the weight in ``checkpoint`` (.safetensors, original layout) that a module of ``weights`` changes, in fp32.

    Raises UserError at once when the LoRA was made for another model or a layer is missing.
    """
    _plan(container.read_safetensors_header(checkpoint), [(weights, 1.0)])
    return reader_of_weights(checkpoint, weights)


def _merged(weight: torch.Tensor, layers: Sequence[_Change]) -> torch.Tensor:
    for change in layers:
        module, view = change.module, change.weight.view(weight)
        delta = module.delta().reshape(view.shape)
        if module.is_dora:
            delta = apply_dora(view, delta, module.tensors["dora_scale"], of_base=change.of_base) - view
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
