"""Putting a LoRA on MODEL and CLIP with ComfyUI's weight adapters, and accounting for every key of the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils

from ..trainer.errors import UserError
from .schema import known

log = logging.getLogger("animelora")


@dataclass(frozen=True)
class Patched:
    """A model and text encoder with a LoRA on them, and what became of the file's keys."""

    model: Any
    clip: Any
    used: int
    total: int
    unknown: tuple[str, ...]

    def summary(self) -> str:
        """One line for the node and the log."""
        line = f"{self.used} of {self.total} keys used"
        return line if not self.unknown else f"{line}; {len(self.unknown)} unknown: {_some(self.unknown)}"


def patch(model: Any, clip: Any, path: Path, strength_model: float, strength_clip: float, *, made_for: str = "") -> Patched:
    """Clones of ``model`` and ``clip`` with the LoRA at ``path`` on them: the same patches as core's LoraLoader makes.

    ``made_for`` names the kind of model that the file was made for, where that is known, for the error. Raises UserError when the file
    cannot be read, when none of its keys belongs to this model, or when their shapes do not fit.
    """
    tensors, metadata = read(path)
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, targets)
    converted = comfy.lora_convert.convert_lora(tensors)
    loaded = comfy.lora.load_lora(converted, targets, False)
    taken = _taken(converted, loaded)
    unknown = tuple(sorted(key for key in converted if key not in taken))
    _check_fit(path.name, model, clip, loaded, unknown, made_for)
    if strength_model == 0 and strength_clip == 0:
        return Patched(model, clip, len(taken), len(converted), unknown)
    only_known = {key: value for key, value in converted.items() if key in taken}
    extra = known(comfy.sd.load_lora_for_models, {"lora_metadata": metadata})
    new_model, new_clip = comfy.sd.load_lora_for_models(model, clip, only_known, strength_model, strength_clip, **extra)
    return Patched(new_model, new_clip, len(taken), len(converted), unknown)


def read(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Tensors and metadata of a LoRA file; ``.pt`` and the like only as plain weights."""
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # torch, safetensors and the file system each raise their own types
        raise UserError(f"The LoRA {path.name} cannot be read: {error}", "Copy or download the file again.", kind="lora") from error
    return tensors, metadata


def _taken(tensors: Mapping[str, Any], loaded: Mapping[Any, Any]) -> set[str]:
    """The keys that ComfyUI used. Its adapters share one set of them; plain differences are found by their names."""
    taken: set[str] = set()
    for value in loaded.values():
        taken |= set(getattr(value, "loaded_keys", ()))
    if any(isinstance(value, tuple) for value in loaded.values()):
        taken |= {key for key in tensors if key.endswith((".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight"))}
    return taken & set(tensors)


def _check_fit(name: str, model: Any, clip: Any, loaded: Mapping[Any, Any], unknown: tuple[str, ...], made_for: str) -> None:
    origin = f" It was made for {made_for}." if made_for else ""
    if not loaded:
        raise UserError(
            f"The LoRA {name} does not fit this model: none of its {len(unknown)} keys belongs to it ({_some(unknown)}).{origin}",
            "Load the kind of model that the LoRA was made for, or choose another LoRA.",
            kind="lora",
        )
    wrong = [key for key, adapter in loaded.items() if not _fits(key, adapter, model, clip)]
    if wrong:
        raise UserError(
            f"The LoRA {name} does not fit this model: {len(wrong)} of {len(loaded)} layers have another shape ({_some(wrong)}).{origin}",
            "Load the kind of model that the LoRA was made for, or choose another LoRA.",
            kind="lora",
        )


def _fits(key: Any, adapter: Any, model: Any, clip: Any) -> bool:
    """Whether an adapter's product has the shape of the weight that it changes (checked for LoRA and LoHa)."""
    name = getattr(adapter, "name", "")
    if name not in ("lora", "loha") or not isinstance(key, str):
        return True
    root = model.model if key.startswith("diffusion_model.") else clip.cond_stage_model
    shape = tuple(comfy.utils.get_attr(root, key).shape)
    up, down = (adapter.weights[0], adapter.weights[1]) if name == "lora" else (adapter.weights[0], adapter.weights[2])
    middle = adapter.weights[3] if name == "lora" else adapter.weights[5]
    if middle is not None or (name == "lora" and adapter.weights[5] is not None):
        return True  # Tucker-decomposed or reshaped: ComfyUI checks those itself
    inner = down.shape[0] if name == "loha" else up.flatten(1).shape[1]
    return bool(up.shape[0] == shape[0] and inner == down.flatten(1).shape[0] and up.shape[0] * down.flatten(1).shape[1] == _count(shape))


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _some(names: Any, most: int = 3) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
