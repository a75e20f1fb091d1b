"""Find the faults of a LoRA that was read: foreign keys, misshapen tensors, numbers that are not finite, layers without effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algorithms.kinds import BIASES, PASSED_THROUGH
from ..algorithms.shape_checks import shape_problem
from ..comfyui_dora import DORA_BASE_KEY, uses_base_norm
from ..family_detection import context_width, foreign_family, stated_family
from ..naming.family_layouts import FAMILY_LAYOUTS, FAMILY_TITLES
from ..weights import LoraModule, LoraWeights
from .layer_sizes import misfits

_LONGEST = 200  # characters of a name in a message


def with_faults(weights: LoraWeights, all_keys: list[str]) -> LoraWeights:
    """``weights`` with their faults, and without misshapen modules. ``all_keys`` are the keys of the file."""
    family, fatal, problems = _key_faults(weights, all_keys)
    sound, faults, notes = _module_faults(weights.modules)
    fatal += faults
    notes = [*weights.notes, *notes]
    if uses_base_norm(weights.metadata):
        base = weights.metadata.get(DORA_BASE_KEY) or "one base model"
        notes.append(f"its DoRA is for ComfyUI's own loader and {base}; other programs read it wrongly")
    if biases := sum(any(name in BIASES for name in module.tensors) for module in sound):
        notes.append(f"{biases} of {len(sound)} layers also change their biases")
    if passed := sorted({module.algorithm for module in sound if module.algorithm in PASSED_THROUGH}):
        problems.append(f"the algorithm {', '.join(passed)} can be converted, but not merged or reduced")
    if sound and all(map(_has_valid_alpha, sound)):
        lines, compared = misfits(family, tuple(sound))
        title = FAMILY_TITLES.get(family, family)
        if lines and _is_other_transformer(family, weights, sound, len(lines) == compared):
            fatal.append(f"it was made for {FAMILY_TITLES['dit']} with layers of other sizes than {title}'s: {examples(lines, 2)}")
            family = "dit"
        elif lines and len(lines) == compared:
            notes.append("its layers have the sizes of a custom model")
        elif lines:
            fatal.append(f"{len(lines)} of {compared} layers have wrong sizes: {examples(lines, 3)}")
    return replace(
        weights, modules=tuple(sound), family=family, fatal=tuple(fatal), problems=(*fatal, *problems), notes=tuple(notes),
        context_width=context_width(sound),
    )  # fmt: skip


def _key_faults(weights: LoraWeights, all_keys: list[str]) -> tuple[str, list[str], list[str]]:
    """The family, fatal faults and problems as the keys show them."""
    fatal = list(weights.fatal)
    foreign = foreign_family(all_keys) if weights.unknown_keys else None
    if foreign and len(weights.unknown_keys) * 2 > len(all_keys):
        fatal.append(f"it was made for {FAMILY_TITLES[foreign]}, which has other layers: {examples(weights.unknown_keys, 2)}")
        return foreign, fatal, []
    if not weights.modules and not fatal:
        fatal.append(f"it holds no LoRA: {_what_instead(all_keys)}")
    elif weights.unknown_keys:
        problem = f"{len(weights.unknown_keys)} keys are malformed or belong to another model, and are not used: "
        return weights.family, fatal, [problem + examples(weights.unknown_keys)]
    return weights.family, fatal, []


def _module_faults(modules: Sequence[LoraModule]) -> tuple[list[LoraModule], list[str], list[str]]:
    """The modules whose tensors fit each other, fatal faults, and notes."""
    sound: list[LoraModule] = []
    misshapen, not_finite, bad_alpha, zero = [], [], [], 0
    for module in modules:
        label = f"{module.component} {module.name}"
        if problem := shape_problem(module.algorithm, module.tensors):
            misshapen.append(f"{label}: {problem}")
            continue
        if any(tensor.is_floating_point() and not bool(tensor.float().isfinite().all()) for tensor in module.tensors.values()):
            not_finite.append(label)
        if not _has_valid_alpha(module):
            bad_alpha.append(label)
        zero += _is_zero(module)
        sound.append(module)
    kinds = (
        (misshapen, "tensors that do not fit each other"),
        (not_finite, "numbers that are not finite"),
        (bad_alpha, "an alpha that is not one finite number"),
    )
    fatal = [f"{len(labels)} layers have {what}: {examples(labels)}" for labels, what in kinds if labels]
    notes = []
    if sound and zero == len(sound):
        fatal.append("all its weights are zero, so it has no effect")
    elif zero:
        notes.append(f"{zero} of {len(sound)} layers are zero and have no effect")
    return sound, fatal, notes


def _is_other_transformer(family: str, weights: LoraWeights, modules: Sequence[LoraModule], all_differ: bool) -> bool:
    """Whether a file is for one of the transformers that share module names with a family: LTX, PixArt and CogVideoX diffusers' with Anima,
    Z-Image the original ones with Lumina 2."""
    if family == "lumina2":
        return all_differ and stated_family(weights.metadata) != "lumina2"
    if family != "anima":
        return False
    width = context_width(modules)
    others_text = width is not None and width != FAMILY_LAYOUTS["anima"].text_width
    stated = stated_family(weights.metadata) == "anima"
    return not weights.uses_original_names and not stated and (others_text or all_differ)


def _has_valid_alpha(module: LoraModule) -> bool:
    return module.alpha is None or (module.alpha.numel() == 1 and bool(module.alpha.float().isfinite().all()))


def _what_instead(all_keys: list[str]) -> str:
    """What a file without LoRA layers is."""
    if any(key.startswith(("net.blocks.", "net.llm_adapter.")) for key in all_keys):
        return "it is a diffusion model and belongs in models/diffusion_models"
    if any(key.startswith(("model.diffusion_model.", "conditioner.", "first_stage_model.")) for key in all_keys):
        return "it is a checkpoint and belongs in models/checkpoints"
    if any(key in ("emb_params", "string_to_param", "clip_l", "clip_g") for key in all_keys):
        return "it is a textual inversion embedding and belongs in models/embeddings"
    what = f"none of its {len(all_keys)} keys names a layer of Stable Diffusion, Anima or Lumina 2: {examples(all_keys, 3)}"
    return what if all_keys else "it is empty"


def _is_zero(module: LoraModule) -> bool:
    """Whether a factor is entirely zero, so that the product is."""
    if module.is_dora or module.algorithm in PASSED_THROUGH:
        return False
    biases: list[bool] = []
    weights: list[bool] = []
    for name, tensor in module.tensors.items():
        if name != "reshape_weight":
            (biases if name in BIASES else weights).append(bool(tensor.any()))
    return not all(weights or [False]) and not any(biases)


def examples(items: Sequence[str], limit: int = 5) -> str:
    """The first ``limit`` of ``items``, shortened, and how many more there are."""
    listed = ", ".join(item if len(item) <= _LONGEST else f"{item[:_LONGEST]}…" for item in items[:limit])
    return listed if len(items) <= limit else f"{listed} and {len(items) - limit} more"
