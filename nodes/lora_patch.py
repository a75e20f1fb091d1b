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
import torch

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
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, targets)
    reading = _best_reading(path, targets)
    _check_fit(path.name, model, clip, reading, made_for)
    if strength_model == 0 and strength_clip == 0:
        return Patched(model, clip, reading.used, reading.total, reading.unknown)
    extra = known(comfy.sd.load_lora_for_models, {"lora_metadata": reading.metadata})
    new_model, new_clip = comfy.sd.load_lora_for_models(model, clip, reading.taken, strength_model, strength_clip, **extra)
    return Patched(new_model, new_clip, reading.used, reading.total, reading.unknown)


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: the tensors that the model takes, the patches they make, and the keys that nobody knows."""

    taken: dict[str, Any]
    patches: Mapping[Any, Any]
    unknown: tuple[str, ...]
    metadata: dict[str, str] | None

    @property
    def used(self) -> int:
        return len(self.taken)

    @property
    def total(self) -> int:
        return len(self.taken) + len(self.unknown)


def _best_reading(path: Path, targets: Mapping[str, Any]) -> _Reading:
    """The file as ComfyUI reads it; where it does not know all keys, in kohya's naming if it then knows more of them."""
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        plain = _match(comfy.lora_convert.convert_lora(tensors), (), metadata, targets)
    except Exception:  # torch, safetensors and the file system each raise their own types; the reader below says it in words
        log.debug("ComfyUI cannot read %s", path, exc_info=True)
        return _translated(path, targets)
    if not plain.unknown:
        return plain
    try:
        translated = _translated(path, targets)
    except UserError:  # a kind of file that only ComfyUI knows
        return plain
    return translated if len(translated.unknown) < len(plain.unknown) else plain


def _translated(path: Path, targets: Mapping[str, Any]) -> _Reading:
    """The file in kohya's naming, whoever wrote it: diffusers and PEFT names, which ComfyUI does not read, among them."""
    from ..trainer import lorafile

    weights = lorafile.read_lora(path)
    return _match(lorafile.to_kohya(weights).tensors, tuple(weights.unknown_keys), dict(weights.metadata), targets)


def _match(mapped: Mapping[str, Any], unknown: tuple[str, ...], metadata: dict[str, str] | None, targets: Mapping[str, Any]) -> _Reading:
    # copied out of the file, which the readers map: Windows lets nobody replace a file that is mapped, and patches stay in ComfyUI's cache
    tensors = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in mapped.items()}
    patches = comfy.lora.load_lora(tensors, targets, False)
    keys = _taken(tensors, patches)
    rest = {key for key in tensors if key not in keys}
    return _Reading({key: value for key, value in tensors.items() if key in keys}, patches, tuple(sorted(rest | set(unknown))), metadata)


def _taken(tensors: Mapping[str, Any], loaded: Mapping[Any, Any]) -> set[str]:
    """The keys that ComfyUI used. Its adapters share one set of them; plain differences are found by their names."""
    taken: set[str] = set()
    for value in loaded.values():
        taken |= set(getattr(value, "loaded_keys", ()))
    if any(isinstance(value, tuple) for value in loaded.values()):
        taken |= {key for key in tensors if key.endswith((".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight"))}
    return taken & set(tensors)


def _check_fit(name: str, model: Any, clip: Any, reading: _Reading, made_for: str) -> None:
    origin = f" It was made for {made_for}." if made_for else ""
    wrong = [key for key, adapter in reading.patches.items() if not _fits(key, adapter, model, clip)]
    if not reading.patches:
        problem = f"none of its {reading.total} keys belongs to it ({_some(reading.unknown)})"
    elif wrong:
        problem = f"{len(wrong)} of {len(reading.patches)} layers have another shape ({_some(wrong)})"
    else:
        return
    raise UserError(
        f"The LoRA {name} does not fit this model: {problem}.{origin}",
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
