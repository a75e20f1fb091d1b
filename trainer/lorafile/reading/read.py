"""Read any LoRA file into ``LoraWeights``, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...core.errors import UserError
from ...core.messages import Action, Message
from .. import algorithms, dora, folding, keys, shapes
from ..family import context_width, family_of, foreign_family
from ..models import FAMILY_NAME, layout_of
from ..unet_names import UNetLayout
from ..weights import LoraModule, LoraWeights
from . import adapter_config, cloneofsimo, tensors

_LONGEST = 200  # characters of a name that are shown
_EMBEDDING_PREFIX = "bundle_emb."  # OneTrainer's embeddings inside a LoRA file


def read_lora(path: Path, layout: UNetLayout | None = None) -> LoraWeights:
    """Read a LoRA of any known naming. ``layout`` is needed only for LDM names of a UNet that is not Stable Diffusion's.

    Raises UserError when the file cannot be used: damaged, not a LoRA, for another kind of model, numbers that are not finite,
    tensors that do not fit each other, an algorithm that is not known. Lesser faults are in ``problems``.
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
    """Like ``read_lora``, but faults inside the file are collected in ``fatal`` and ``problems`` instead of raised."""
    return _copied(_scan(tensors.load(Path(path)), layout))


def _copied(weights: LoraWeights) -> LoraWeights:
    """``weights`` with tensors of their own. Those of the file are parts of its map, and Windows lets nobody replace a file that is
    mapped. Copied at the end, so that of a checkpoint that was taken for a LoRA nothing is."""
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
    if raw.listed or cloneofsimo.is_listed(list(raw.tensors)):
        return _nameless(raw, layout)
    weights = _group(raw.tensors, layout or layout_of("sd1"))
    modules = weights.modules
    family, reason = family_of(modules, metadata)
    found = layout_of(family)
    if layout is None and found != layout_of("sd1") and weights.uses_ldm:  # names were read as SD 1.x', and are SDXL's
        weights = _group(raw.tensors, found)
        modules = weights.modules
        family, reason = family_of(modules, metadata)
    notes = list(weights.notes)
    if folding.stated(metadata):
        modules = folding.unfold(modules, metadata.pop(folding.KEY))
    else:
        modules, source = adapter_config.with_alphas(modules, metadata, raw.path, weights.format)
        if source:
            notes.append(f"the scale comes from {source}")
    weights = replace(weights, modules=modules, family=family, family_reason=reason, metadata=metadata, layout=layout, notes=tuple(notes))
    return _judge(weights, list(raw.tensors))


def _nameless(raw: tensors.RawFile, layout: UNetLayout | None) -> LoraWeights:
    shape = layout or layout_of("sd1")
    extra: dict[str, torch.Tensor] = {}
    if raw.listed:
        modules = cloneofsimo.read_list(raw.listed, shape)
    else:
        modules, extra = cloneofsimo.read_table(raw.tensors, raw.metadata, shape)
    family, reason = family_of(modules, raw.metadata)
    # its own bookkeeping describes the old layout and would be wrong in any other
    own = {"unet", "text_encoder", *extra}
    metadata = {key: text for key, text in raw.metadata.items() if ":" not in key and key not in own}
    weights = LoraWeights(modules, family, "cloneofsimo", metadata, layout, extra, family_reason=reason)
    return _judge(weights, [])


def _group(table: dict[str, torch.Tensor], layout: UNetLayout) -> LoraWeights:
    """Sort tensors into modules; what cannot be sorted goes to ``unknown_keys``."""
    grouped: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    extra, unknown, formats, ldm, clashes = {}, [], [], False, []
    for key, tensor in table.items():
        if key.startswith(_EMBEDDING_PREFIX):
            extra[key] = tensor
            continue
        parsed = keys.parse(key, layout)
        if parsed is None:
            unknown.append(key)
            continue
        module = grouped.setdefault((parsed.component, parsed.module), {})
        if parsed.suffix in module:
            clashes.append(key)
        module[parsed.suffix] = tensor
        formats.append(parsed.format)
        ldm = ldm or parsed.ldm
    form = max(sorted(set(formats)), key=formats.count) if formats else "unknown"
    modules, fatal = [], [f"two keys name one tensor: {_some(clashes)}"] if clashes else []
    strange: list[str] = []
    for (component, name), group in grouped.items():
        algorithm = algorithms.algorithm_of(frozenset(group))
        if algorithm is None:
            strange.append(f"{component} {name} ({', '.join(sorted(group))})")
            continue
        alpha = group.pop("alpha", None)
        modules.append(LoraModule(component, name, algorithm, _as_stored(group, form), alpha))
    if strange:
        fatal.append(f"{len(strange)} layers have tensors of no known algorithm, or lack some: {_some(strange)}")
    notes = (f"{len(extra)} bundled embeddings",) if extra else ()
    return LoraWeights(
        tuple(modules), "unknown", form, extra=extra, unknown_keys=tuple(unknown), fatal=tuple(fatal), notes=notes, uses_ldm=ldm
    )


def _as_stored(group: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """PEFT stores DoRA's magnitude as a row; LyCORIS as a column."""
    scale = group.get("dora_scale")
    if scale is not None and form == "peft" and "lora_down.weight" in group:
        group["dora_scale"] = scale.reshape(-1, *[1] * (group["lora_down.weight"].ndim - 1))
    return group


def _judge(weights: LoraWeights, all_keys: list[str]) -> LoraWeights:
    fatal, problems, notes = list(weights.fatal), [], list(weights.notes)
    family = weights.family
    foreign = foreign_family(all_keys) if weights.unknown_keys else None
    if foreign and len(weights.unknown_keys) * 2 > len(all_keys):
        family = foreign
        fatal.append(f"it was made for {FAMILY_NAME[foreign]}, which has other layers: {_some(weights.unknown_keys, 2)}")
    elif not weights.modules and not fatal:
        fatal.append(f"it holds no LoRA: {_instead(all_keys)}")
    elif weights.unknown_keys:
        problems.append(f"{len(weights.unknown_keys)} malformed or foreign keys are not used: {_some(weights.unknown_keys)}")
    sound: list[LoraModule] = []
    broken, wild, dead, odd_alpha = [], [], 0, []
    for module in weights.modules:
        label = f"{module.component} {module.name}"
        fault = algorithms.shape_problem(module.algorithm, module.tensors)
        if fault:
            broken.append(f"{label}: {fault}")
            continue
        if any(tensor.is_floating_point() and not bool(tensor.float().isfinite().all()) for tensor in module.tensors.values()):
            wild.append(label)
        if module.alpha is not None and (module.alpha.numel() != 1 or not bool(module.alpha.float().isfinite().all())):
            odd_alpha.append(label)
        dead += _is_zero(module)
        sound.append(module)
    for faults, what in (
        (broken, "tensors that do not fit each other"),
        (wild, "numbers that are not finite"),
        (odd_alpha, "an alpha that is not one finite number"),
    ):
        if faults:
            fatal.append(f"{len(faults)} layers have {what}: {_some(faults)}")
    if sound and dead == len(sound):
        fatal.append("all its weights are zero, so it does nothing")
    elif dead:
        notes.append(f"{dead} of {len(sound)} layers are zero and do nothing")
    if dora.is_of_base(weights.metadata):
        base = weights.metadata.get(dora.BASE_KEY) or "one base model"
        notes.append(f"its DoRA is for ComfyUI's own loader and {base}: other programs read it wrongly")
    biases = sum(any(name in algorithms.BIASES for name in module.tensors) for module in sound)
    if biases:
        notes.append(f"{biases} of {len(sound)} layers have their biases changed")
    passed = sorted({module.algorithm for module in sound if module.algorithm in algorithms.PASSED_THROUGH})
    if passed:
        problems.append(f"the algorithm {', '.join(passed)} can be renamed here, but not merged or reduced")
    if sound and not odd_alpha:
        lines, compared = shapes.misfits(family, tuple(sound))
        if lines and len(lines) == compared:
            notes.append("its layers have the sizes of a custom model")
        elif lines:
            fatal.append(f"{len(lines)} of {compared} layers have wrong sizes: {_some(lines, 3)}")
    return replace(
        weights, modules=tuple(sound), family=family, fatal=tuple(fatal), problems=(*fatal, *problems), notes=tuple(notes),
        context_width=context_width(sound),
    )  # fmt: skip


def _instead(all_keys: list[str]) -> str:
    """What a file without LoRA layers is."""
    if any(key.startswith(("model.diffusion_model.", "conditioner.", "first_stage_model.")) for key in all_keys):
        return "it is a checkpoint, which belongs into models/checkpoints"
    if any(key in ("emb_params", "string_to_param", "clip_l", "clip_g") for key in all_keys):
        return "it is a textual inversion embedding, which belongs into models/embeddings"
    what = f"none of its {len(all_keys)} keys names a layer of Stable Diffusion: {_some(all_keys, 3)}"
    return what if all_keys else "it is empty"


def _is_zero(module: LoraModule) -> bool:
    """Whether a factor is zero altogether, so that the product is."""
    if module.is_dora or module.algorithm in algorithms.PASSED_THROUGH:
        return False
    biases: list[bool] = []
    weights: list[bool] = []
    for name, tensor in module.tensors.items():
        if name != "reshape_weight":
            (biases if name in algorithms.BIASES else weights).append(bool(tensor.any()))
    return not all(weights or [False]) and not any(biases)


def _some(items: Sequence[str], limit: int = 5) -> str:
    listed = ", ".join(item if len(item) <= _LONGEST else f"{item[:_LONGEST]}…" for item in items[:limit])
    return listed if len(items) <= limit else f"{listed} and {len(items) - limit} more"
