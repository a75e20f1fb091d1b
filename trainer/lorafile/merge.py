"""Merge several LoRAs into one: the weight changes add up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import UserError
from .family import FAMILY_NAME, mismatch
from .information import trigger_words
from .rank import as_lora
from .weights import LoraModule, LoraWeights


def merge(parts: Sequence[tuple[LoraWeights, float]], rank: int | None = None) -> LoraWeights:
    """One LoRA whose weight change is the sum of ``strength`` times each part's. fp32 tensors.

    Exact: a layer's rank becomes the sum of the parts' ranks (``reduce_rank`` lowers it again). Parts that are not plain LoRA need
    ``rank``, the rank at which they are approximated first. Raises UserError for parts of different families or sizes, and for DoRA,
    whose change depends on the model's weights.
    """
    if not parts:
        raise UserError("There is nothing to merge.", "Name at least one LoRA.", kind="lora")
    first = parts[0][0]
    for weights, _ in parts:
        if reason := mismatch(weights.family, first.family, weights.context_width, first.context_width):
            names = f"{FAMILY_NAME.get(first.family, first.family)} and {FAMILY_NAME.get(weights.family, weights.family)}"
            raise UserError(f"LoRAs for {names} cannot be merged.", reason, kind="lora")
    grouped: dict[tuple[str, str], list[tuple[LoraModule, float]]] = {}
    for weights, strength in parts:
        for module in weights:
            grouped.setdefault((module.component, module.name), []).append((module, strength))
    modules = tuple(_merge_layer(layer, rank) for layer in grouped.values())
    extra = {key: tensor for weights, _ in reversed(parts) for key, tensor in weights.extra.items()}
    return replace(first, modules=modules, metadata=_metadata(parts, modules), extra=extra, problems=(), notes=())


def _merge_layer(layer: Sequence[tuple[LoraModule, float]], rank: int | None) -> LoraModule:
    first = layer[0][0]
    if any(module.is_dora for module, _ in layer):
        raise UserError(
            f"{first.name} is DoRA, whose change depends on the model's weights: it cannot be merged with others.",
            "Merge into a checkpoint instead (--into-checkpoint).",
            kind="lora",
        )
    kinds = {module.algorithm for module, _ in layer}
    if kinds <= {"full", "norm"} and len(kinds) == 1:
        names = {name for module, _ in layer for name in module.tensors}
        sums = {name: sum(m.tensors[name].float() * s for m, s in layer if name in m.tensors) for name in names}
        return replace(first, tensors={name: torch.as_tensor(total) for name, total in sums.items()}, alpha=None)
    plain = [(_plain(module, rank), strength) for module, strength in layer]
    shapes = {(m.tensors["lora_up.weight"].shape[0], m.tensors["lora_down.weight"][0].numel()) for m, _ in plain}
    if len(shapes) > 1:
        raise UserError(
            f"The LoRAs have different sizes in {first.name}: {sorted(shapes)}.", "They were made for other models.", kind="lora"
        )
    # a Linear layer may be stored as a 1x1 convolution in one file and as a matrix in another
    like = plain[0][0].tensors
    tail_up, tail_down = like["lora_up.weight"].shape[2:], like["lora_down.weight"].shape[1:]
    ups = [m.tensors["lora_up.weight"].float().flatten(1) * (m.scale * strength) for m, strength in plain]
    downs = [m.tensors["lora_down.weight"].float().flatten(1) for m, _ in plain]
    up, down = torch.cat(ups, 1), torch.cat(downs)
    tensors = {"lora_up.weight": up.reshape(*up.shape, *tail_up), "lora_down.weight": down.reshape(-1, *tail_down)}
    return replace(first, algorithm="lora", tensors=tensors, alpha=torch.tensor(float(down.shape[0])))


def _plain(module: LoraModule, rank: int | None) -> LoraModule:
    if module.algorithm == "lora" and "lora_mid.weight" not in module.tensors:
        return module
    if rank is None:
        raise UserError(
            f"{module.name} is {module.algorithm}, which can be merged only as an approximation.",
            "Give the rank to approximate it with (--rank N).",
            kind="lora",
        )
    exact = {name: tensor.float() for name, tensor in module.tensors.items()}
    return as_lora(replace(module, tensors=exact), rank)


def _metadata(parts: Sequence[tuple[LoraWeights, float]], modules: Sequence[LoraModule]) -> dict[str, str]:
    metadata = dict(parts[0][0].metadata)
    if len(parts) > 1:
        titles = [w.metadata.get("modelspec.title") or w.metadata.get("ss_output_name") or "unnamed" for w, _ in parts]
        metadata["modelspec.merged_from"] = ", ".join(titles)
        origin = [
            {"title": title, "strength": strength, "hash": w.metadata.get("sshs_model_hash", ""), "metadata": _own(w)}
            for title, (w, strength) in zip(titles, parts, strict=True)
        ]
        metadata["animelora.merged"] = json.dumps(origin, ensure_ascii=False)
        words = list(dict.fromkeys(word for weights, _ in parts for word in trigger_words(weights.metadata)))
        if words:
            metadata["modelspec.trigger_phrase"] = ", ".join(words)
    if "ss_network_dim" in metadata:
        metadata["ss_network_dim"] = metadata["ss_network_alpha"] = str(max((module.rank or 0 for module in modules), default=0))
    return metadata


def _own(weights: LoraWeights) -> dict[str, str]:
    """A part's metadata as far as it is worth keeping: no thumbnail, which would bloat the header."""
    return {key: value for key, value in weights.metadata.items() if key != "modelspec.thumbnail" and key != "animelora.merged"}
