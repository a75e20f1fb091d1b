"""The scale of PEFT files, whose tensors include no alpha, from diffusers' metadata or PEFT's adapter_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.files.reading import read_regular
from ...core.messages import File, Message
from ..metadata_values import json_object
from ..naming.family_layouts import diffusers_prefixes_of
from ..weights import LoraModule

DIFFUSERS_KEY = "lora_adapter_metadata"  # JSON: {"unet.lora_alpha": 16, "unet.alpha_pattern": {...}, ...}
_LARGEST = 16 << 20  # bytes of a configuration


def with_alphas(
    modules: tuple[LoraModule, ...], metadata: Mapping[str, str], path: Path, form: str, family: str
) -> tuple[tuple[LoraModule, ...], str]:
    """``modules`` of the file ``path`` with the alpha from a PEFT configuration, and where it was found (empty: nowhere, scale 1).

    An adapter_config.json beside the file applies only to files that PEFT wrote, recognised by key names (``form`` is peft) or by file
    name. Raises UserError for an invalid configuration.
    """
    if any(module.alpha is not None for module in modules):
        return modules, ""
    if DIFFUSERS_KEY in metadata:
        table = json_object(metadata[DIFFUSERS_KEY])
        if table:
            prefixes = diffusers_prefixes_of(family)
            parts = {name: _scale(_part(table, prefix), "its adapter metadata") for name, prefix in prefixes.items()}
            scaled = (_with_alpha(module, parts[module.component]) if module.component in parts else module for module in modules)
            return tuple(scaled), "diffusers' adapter metadata"
    config = path.parent / "adapter_config.json"
    if (form == "peft" or path.stem == "adapter_model") and config.is_file():
        if config.stat().st_size > _LARGEST:
            raise UserError(
                Message(File(str(config)), " is too large for a configuration file."),
                "The LoRA's scale is unknown without it. Export the LoRA again.",
                kind="lora",
            )
        table = json_object(read_regular(config, _LARGEST).decode("utf-8-sig", "replace"))
        if not table:
            raise UserError(
                Message(File(str(config)), " is not a JSON object."),
                "The LoRA's scale is unknown without it. Export the LoRA again.",
                kind="lora",
            )
        scale = _scale(table, File(str(config)))
        return tuple(_with_alpha(module, scale) for module in modules), "adapter_config.json"
    return modules, ""


@dataclass(frozen=True)
class _Scale:
    """alpha in a configuration: for all layers, by the end of a layer's name (with the pattern's position), and whether it is divided by
    the square root of the rank instead of the rank."""

    alpha: float | None
    patterns: Mapping[str, tuple[int, float]]
    rank_stabilised: bool


def _scale(config: Mapping[str, Any], source: str | File) -> _Scale:
    name = "lora_alpha" if "lora_alpha" in config else "alpha"
    alpha, patterns, root = config.get(name), config.get("alpha_pattern") or {}, config.get("use_rslora") or False
    if alpha is not None and _number(alpha) is None:
        raise _invalid(source, name, alpha)
    if not isinstance(patterns, dict) or any(_number(value) is None for value in patterns.values()):
        raise _invalid(source, "alpha_pattern", patterns)
    if not isinstance(root, bool):
        raise _invalid(source, "use_rslora", root)
    return _Scale(_number(alpha), {str(name): (place, _number(value) or 0.0) for place, (name, value) in enumerate(patterns.items())}, root)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer with more than 308 digits
        return None


def _invalid(source: str | File, name: str, value: object) -> UserError:
    return UserError(
        Message(source, f" has an invalid value: {name} = {str(value)[:80]}."),
        "The LoRA's scale is unknown without it. Correct it, or export the LoRA again.",
        kind="lora",
    )


def _with_alpha(module: LoraModule, scale: _Scale) -> LoraModule:
    alpha, rank = scale.alpha, module.rank
    if alpha is None or not rank:
        return module
    # a pattern matches the end of a name, and the last match counts; looking up every end of the name is fast however many patterns exist
    ends = [module.name[start:] for start in range(len(module.name) + 1)]
    _, alpha = max((scale.patterns[end] for end in ends if end in scale.patterns), default=(-1, alpha))
    value = alpha * (math.sqrt(rank) if scale.rank_stabilised else 1.0)
    return replace(module, alpha=torch.tensor(value, dtype=torch.float32))


def _part(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in table.items() if key.startswith(prefix)}
