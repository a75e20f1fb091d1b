"""Read any LoRA file into ``LoraWeights``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.messages import Action, Message
from ..algorithms.kinds import algorithm_of
from ..family_detection import detect_family
from ..folded_alpha import FOLDED_ALPHA_KEY, folded_record, unfold
from ..naming.family_layouts import unet_layout_of
from ..naming.parse_key import parse_keys
from ..naming.unet_names import UNetLayout
from ..readers import who_cannot_read
from ..weights import LoraModule, LoraWeights
from . import adapter_config, cloneofsimo, tensors
from .faults import examples, with_faults

_EMBEDDING_PREFIX = "bundle_emb."  # OneTrainer's embeddings inside a LoRA file


def read_lora(path: Path, layout: UNetLayout | None = None) -> LoraWeights:
    """Read a LoRA in any known naming. ``layout`` is needed only for LDM names of UNets that are not Stable Diffusion's.

    Raises UserError when the file cannot be used: it is damaged, not a LoRA, made for another kind of model, uses an unknown algorithm, or
    holds tensors that are not finite or do not fit each other. ``problems`` lists minor faults.
    """
    weights = scan_lora(path, layout)
    if weights.fatal:
        raise UserError(
            f"{Path(path).name} cannot be used: {'; '.join(weights.fatal)}.",
            Message("For details see ", Action.INSPECT_LORA, "; choose another file or make it again."),
            kind="lora",
        )
    return weights


def scan_lora(path: Path, layout: UNetLayout | None = None) -> LoraWeights:
    """Like ``read_lora``, but faults in the content of the file are collected in ``fatal`` and ``problems`` and not raised."""
    return _copied(_scan(tensors.load_tensors(Path(path)), layout))


def _copied(weights: LoraWeights) -> LoraWeights:
    """``weights`` with tensors copied out of the mapped file, because Windows does not allow replacing a file while it is mapped. This
    comes last, so that a checkpoint that was mistaken for a LoRA is not copied."""
    modules = tuple(
        replace(
            module,
            tensors={name: tensor.clone() for name, tensor in module.tensors.items()},
            alpha=None if module.alpha is None else module.alpha.clone(),
        )
        for module in weights.modules
    )
    return replace(weights, modules=modules, extra={key: tensor.clone() for key, tensor in weights.extra.items()})


def _scan(raw: tensors.RawFile, layout: UNetLayout | None) -> LoraWeights:
    metadata = dict(raw.metadata)
    if raw.listed or cloneofsimo.has_listed_keys(list(raw.tensors)):
        return _scan_without_names(raw, layout)
    weights = _group(raw.tensors, layout or unet_layout_of("sd1"))
    modules = weights.modules
    family, reason = detect_family(modules, metadata)
    found = unet_layout_of(family)
    if (
        layout is None and found != unet_layout_of("sd1") and weights.uses_original_names
    ):  # LDM names were read with SD 1.x' layout, but are SDXL's
        weights = _group(raw.tensors, found)
        modules = weights.modules
        family, reason = detect_family(modules, metadata)
    has_alpha = any(key.endswith(".alpha") for key in raw.tensors)
    unread = who_cannot_read(family, weights.format, has_alpha=has_alpha, plain=weights.algorithm == "lora")
    notes = [*weights.notes, *unread]
    if folded_record(metadata):
        modules = unfold(modules, metadata.pop(FOLDED_ALPHA_KEY))
    else:
        modules, source = adapter_config.with_alphas(modules, metadata, raw.path, weights.format, family)
        if source:
            notes.append(f"the scale comes from {source}")
    weights = replace(weights, modules=modules, family=family, family_reason=reason, metadata=metadata, layout=layout, notes=tuple(notes))
    return with_faults(weights, list(raw.tensors))


def _scan_without_names(raw: tensors.RawFile, layout: UNetLayout | None) -> LoraWeights:
    shape = layout or unet_layout_of("sd1")
    extra: dict[str, torch.Tensor] = {}
    if raw.listed:
        modules = cloneofsimo.read_list(raw.listed, shape)
    else:
        modules, extra = cloneofsimo.read_table(raw.tensors, raw.metadata, shape)
    family, reason = detect_family(modules, raw.metadata)
    # the format's own entries describe its layout and would be wrong in another format
    own = {"unet", "text_encoder", *extra}
    metadata = {key: text for key, text in raw.metadata.items() if ":" not in key and key not in own}
    weights = LoraWeights(modules, family, "cloneofsimo", metadata, layout, extra, family_reason=reason)
    return with_faults(weights, [])


def _group(table: dict[str, torch.Tensor], layout: UNetLayout) -> LoraWeights:
    """Group tensors into modules. Keys that cannot be parsed go to ``unknown_keys``."""
    grouped: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    unknown, formats, original, clashes = [], [], False, []
    extra = {key: tensor for key, tensor in table.items() if key.startswith(_EMBEDDING_PREFIX)}
    for key, parsed in parse_keys([key for key in table if key not in extra], layout):
        if parsed is None:
            unknown.append(key)
            continue
        module = grouped.setdefault((parsed.component, parsed.module), {})
        if parsed.suffix in module:
            clashes.append(key)
        module[parsed.suffix] = table[key]
        formats.append(parsed.format)
        original = original or parsed.original
    form = max(sorted(set(formats)), key=formats.count) if formats else "unknown"
    modules, fatal = [], [f"several keys name the same tensor: {examples(clashes)}"] if clashes else []
    strange: list[str] = []
    for (component, name), group in grouped.items():
        algorithm = algorithm_of(frozenset(group))
        if algorithm is None:
            strange.append(f"{component} {name} ({', '.join(sorted(group))})")
            continue
        alpha = group.pop("alpha", None)
        modules.append(LoraModule(component, name, algorithm, _with_column_magnitudes(group, form), alpha))
    if strange:
        fatal.append(f"{len(strange)} layers have an unknown algorithm or lack tensors: {examples(strange)}")
    notes = (f"{len(extra)} bundled embeddings",) if extra else ()
    return LoraWeights(
        tuple(modules),
        "unknown",
        form,
        extra=extra,
        unknown_keys=tuple(unknown),
        fatal=tuple(fatal),
        notes=notes,
        uses_original_names=original,
    )


def _with_column_magnitudes(group: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """DoRA's magnitudes as a column, as LyCORIS stores them. PEFT stores a row."""
    scale = group.get("dora_scale")
    if scale is not None and (form == "peft" or scale.ndim == 1) and "lora_down.weight" in group:
        group["dora_scale"] = scale.reshape(-1, *[1] * (group["lora_down.weight"].ndim - 1))
    return group
