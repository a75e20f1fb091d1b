"""The scale of PEFT files, whose tensors carry no alpha: from diffusers' metadata or PEFT's adapter_config.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .weights import LoraModule

DIFFUSERS_KEY = "lora_adapter_metadata"  # JSON: {"unet.lora_alpha": 16, "unet.alpha_pattern": {...}, ...}
_COMPONENT = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


def with_alphas(modules: tuple[LoraModule, ...], metadata: Mapping[str, str], folder: Path) -> tuple[tuple[LoraModule, ...], str]:
    """``modules`` with the alpha that a PEFT configuration states, and where it was found (empty: nowhere, scale 1)."""
    if any(module.alpha is not None for module in modules):
        return modules, ""
    if DIFFUSERS_KEY in metadata:
        table = _json_object(metadata[DIFFUSERS_KEY])
        if table:
            parts = {name: _part(table, f"{prefix}.") for name, prefix in _COMPONENT.items()}
            return tuple(_with_alpha(module, parts[module.component]) for module in modules), "diffusers' adapter metadata"
    config = folder / "adapter_config.json"
    if config.is_file():
        table = _json_object(config.read_text(encoding="utf-8", errors="replace"))
        if not table:
            raise UserError(f"{config} is not a JSON object.", "Without it the LoRA's scale is unknown; export it again.", kind="lora")
        return tuple(_with_alpha(module, table) for module in modules), "adapter_config.json"
    return modules, ""


def _with_alpha(module: LoraModule, config: Mapping[str, Any]) -> LoraModule:
    alpha, rank = config.get("lora_alpha", config.get("alpha")), module.rank
    if alpha is None or not rank:
        return module
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if module.name == pattern or re.fullmatch(rf".*\.?{re.escape(str(pattern))}", module.name):
            alpha = value
    value = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return replace(module, alpha=torch.tensor(value, dtype=torch.float32))


def _part(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in table.items() if key.startswith(prefix)}


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
