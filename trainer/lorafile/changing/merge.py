"""Merge several LoRAs into one whose weight change is the sum of theirs."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...core.errors import UserError
from ...core.messages import Action, ExportOption, Message
from ...core.work.progress import track
from ..algorithms.kinds import PASSED_THROUGH
from ..algorithms.weight_change import delta_shape
from ..biases import bias_of, with_bias, without_bias
from ..describing.information import trigger_words
from ..family_detection import mismatch
from ..naming.family_layouts import FAMILY_TITLES
from ..weights import LoraModule, LoraWeights
from .rank import RankReport, is_plain, reduced, reduced_metadata

_LONGEST = 10_000  # characters; longer values of the parts' metadata are dropped
_Part = tuple[LoraModule, float]  # with its strength


def merge(parts: Sequence[tuple[LoraWeights, float]], rank: int | None = None) -> tuple[LoraWeights, RankReport | None]:
    """One LoRA in fp32 whose weight change is the sum of each part's times its strength, and the report of lowering it to ``rank``.

    Without ``rank``, the sum is exact and the rank of each layer is the sum of the parts' ranks. With it, the exact sum is reduced to at
    most that rank. Parts that are not plain LoRA need a rank. Raises UserError for parts of different families or sizes, and for DoRA,
    whose change depends on the model's weights.
    """
    if not parts:
        raise UserError("There is nothing to merge.", "Choose at least one LoRA.", kind="lora")
    first = parts[0][0]
    for weights, _ in parts:
        if reason := mismatch(weights.family, first.family, weights.context_width, first.context_width):
            names = f"{FAMILY_TITLES.get(first.family, first.family)} and {FAMILY_TITLES.get(weights.family, weights.family)}"
            raise UserError(f"LoRAs for {names} cannot be merged.", reason, kind="lora")
    grouped: dict[tuple[str, str], list[_Part]] = {}
    for weights, strength in parts:
        for module in weights:
            grouped.setdefault((module.component, module.name), []).append((module, strength))
    for layer in grouped.values():
        _check(layer, rank)
    sums = (_merge_layer(layer) for layer in track(grouped.values(), "merging layers", len(grouped)))
    modules, report = (tuple(sums), None) if rank is None else reduced(sums, rank)
    metadata = _metadata(parts, modules)
    if report and report.changed:
        metadata = reduced_metadata(metadata, (module for weights, _ in parts for module in weights), modules)
    extra = {key: tensor for weights, _ in reversed(parts) for key, tensor in weights.extra.items()}
    problems = tuple(dict.fromkeys(problem for weights, _ in parts for problem in weights.problems))
    return replace(first, modules=modules, metadata=metadata, extra=extra, problems=problems, notes=()), report


def common_dtype(parts: Sequence[LoraWeights]) -> torch.dtype | None:
    """The number type for a sum of these LoRAs: the widest of theirs, and at least fp16, because sums of 8-bit numbers need more bits."""
    kinds = [weights.dtype for weights in parts if weights.dtype]
    wide = [kind for kind in kinds if kind.itemsize > 1]
    if not wide:
        return torch.float16 if kinds else None
    return functools.reduce(torch.promote_types, wide)


def _check(layer: Sequence[_Part], rank: int | None) -> None:
    """Raise UserError for a layer whose changes cannot be summed."""
    weights = _weight_changes(layer)
    for module, _ in layer:
        if "reshape_weight" in module.tensors:
            raise UserError(f"{module.name} changes the layer's size, so it cannot be merged.", "Load this LoRA by itself.", kind="lora")
        if module.is_dora:
            raise UserError(
                f"{module.name} is DoRA and cannot be merged with others, because its change depends on the model's weights.",
                Message("Merge it into a checkpoint instead, with ", Action.MERGE_LORA, "."),
                kind="lora",
            )
        if module.algorithm in PASSED_THROUGH:
            raise UserError(f"{module.name} is {module.algorithm}, which cannot be merged.", "Load this LoRA by itself.", kind="lora")
        if module.algorithm == "bias" or _are_plain_differences(weights) or is_plain(module):
            continue
        if rank is None:
            raise UserError(
                f"{module.name} is {module.algorithm}, which can be merged only as an approximation.",
                Message("Choose the rank of the approximation: ", ExportOption("rank"), "."),
                kind="lora",
            )


def _weight_changes(layer: Sequence[_Part]) -> list[_Part]:
    """The parts without their bias changes."""
    return [(weight, strength) for module, strength in layer if (weight := without_bias(module)) is not None]


def _are_plain_differences(layer: Sequence[_Part]) -> bool:
    kinds = {module.algorithm for module, _ in layer}
    return kinds in ({"full"}, {"norm"})


def _merge_layer(layer: Sequence[_Part]) -> LoraModule:
    changes = [(bias, strength) for module, strength in layer if (bias := bias_of(module)) is not None]
    weights = _weight_changes(layer)
    merged = _merge_weights(weights) if weights else replace(layer[0][0], tensors={}, alpha=None)
    if not changes:
        return merged
    _check_sizes(f"the bias of {merged.name}", [tuple(bias.shape) for bias, _ in changes])
    return with_bias(merged, sum((bias * strength for bias, strength in changes), torch.zeros_like(changes[0][0])))


def _merge_weights(layer: Sequence[_Part]) -> LoraModule:
    first = layer[0][0]
    if _are_plain_differences(layer):
        return replace(first, tensors={name: _sum_of(name, layer) for name in {n for m, _ in layer for n in m.tensors}}, alpha=None)
    shapes = [delta_shape(module.algorithm, module.tensors) for module, _ in layer]
    _check_sizes(first.name, shapes)
    if not all(is_plain(module) for module, _ in layer):
        # convolutions may be stored as matrices in one file and in the kernel's shape in another
        shape = max(shapes, key=len)
        total = sum((module.delta().reshape(shape) * strength for module, strength in layer), torch.zeros(shape))
        return replace(first, algorithm="full", tensors={"diff": total}, alpha=None)
    # a Linear layer may be stored as a 1x1 convolution in one file and as a matrix in another
    like = first.tensors
    tail_up, tail_down = like["lora_up.weight"].shape[2:], like["lora_down.weight"].shape[1:]
    scaled = [_scaled(module, strength) for module, strength in layer]
    up, down = torch.cat([up for up, _ in scaled], 1), torch.cat([down for _, down in scaled])
    tensors = {"lora_up.weight": up.reshape(*up.shape, *tail_up), "lora_down.weight": down.reshape(-1, *tail_down)}
    return replace(first, tensors=tensors, alpha=torch.tensor(float(down.shape[0])))


def _sum_of(name: str, layer: Sequence[_Part]) -> torch.Tensor:
    """The sum of the plain differences called ``name``, over the parts that have one."""
    tensors = [(module.tensors[name].float(), strength) for module, strength in layer if name in module.tensors]
    _check_sizes(layer[0][0].name, [tuple(tensor.shape) for tensor, _ in tensors])
    like = torch.zeros_like(tensors[0][0])
    return sum((tensor.reshape(like.shape) * strength for tensor, strength in tensors), like)


def _check_sizes(name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise UserError when outputs or inputs differ. A kernel may be flattened in one file and not in another."""
    sizes = {(math.prod(shape[:1]), math.prod(shape[1:])) for shape in shapes}
    if len(sizes) > 1:
        raise UserError(f"The LoRAs have different sizes in {name}: {sorted(sizes)}.", "They were made for different models.", kind="lora")


def _scaled(module: LoraModule, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """up (out, rank) and down (rank, in) multiplied by the scale, balanced so that both have similar magnitudes.

    With the whole scale in one of them, its numbers could become subnormal in fp16 (below 6.1e-5) and lose digits. The balancing factor
    is a power of two, so it causes no rounding.
    """
    up, down = (module.tensors[f"lora_{side}.weight"].float().flatten(1) for side in ("up", "down"))
    scale = module.scale * strength
    if scale == 1.0:
        return up, down
    up = up * scale
    ratio = float(up.double().square().mean().sqrt()) / (float(down.double().square().mean().sqrt()) or 1.0)
    factor = 2.0 ** round(math.log2(ratio) / 2) if ratio else 1.0
    return up / factor, down * factor


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
    """A part's metadata without long values such as the thumbnail, which would bloat the header."""
    return {key: value for key, value in weights.metadata.items() if len(value) <= _LONGEST and key != "animelora.merged"}
