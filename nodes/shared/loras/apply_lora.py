"""Apply a LoRA to MODEL and CLIP with ComfyUI's weight adapters, and account for every key of the file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import torch

from ....trainer.core.counting import plural
from ....trainer.core.errors import UserError
from ....trainer.lorafile import depth_mismatch
from ..schema import known
from .exact_adapters import exact_patches

log = logging.getLogger("animelora")

# LyCORIS' names of the tensors in the ``weights`` of ComfyUI's adapters, in order
_TENSORS = {
    "lora": ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale", "reshape"),
    "loha": ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    "lokr": (
        *("lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale"),
    ),
}


@dataclass(frozen=True)
class MadeFor:
    """The model that a LoRA was made for: the title of its family (empty if unknown), and the number of blocks that it needs."""

    family: str = ""
    blocks: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)  # may state the number of blocks


UNSTATED = MadeFor()


@dataclass(frozen=True)
class AppliedLora:
    """A model and text encoder with a LoRA, and how many of the file's keys were used."""

    model: Any
    clip: Any
    used: int
    total: int
    unknown: tuple[str, ...]

    def summary(self) -> str:
        """A line for the node and the log."""
        line = f"{self.used} of {plural(self.total, 'key')} used"
        return line if not self.unknown else f"{line}; {len(self.unknown)} unknown: {_some(self.unknown)}"


def apply_lora(model: Any, clip: Any, path: Path, strength_model: float, strength_clip: float, made_for: MadeFor = UNSTATED) -> AppliedLora:
    """Clones of ``model`` and ``clip`` with the LoRA at ``path``: the same patches as core's LoraLoader, except for DoRA and LoKr in Tucker
    form, which core applies inexactly or not at all (see ``exact_adapters``).

    Raises UserError when the file cannot be read, when none of its keys belongs to this model, when their shapes do not fit, or when the
    model has its blocks in other places.
    """
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, targets)
    reading = _best_reading(path, targets)
    _check_fit(path.name, model, clip, reading, made_for.family)
    if wrong_depth := depth_mismatch(made_for.blocks, _blocks(model), made_for.metadata):
        raise wrong_depth
    if strength_model == 0 and strength_clip == 0:
        return AppliedLora(model, clip, reading.used, reading.total, reading.unknown)
    new_model, new_clip = model.clone(), clip.clone()
    new_model.add_patches(reading.patches, strength_model)
    new_clip.add_patches(reading.patches, strength_clip)
    if reading.metadata and known(comfy.sd.load_lora_for_models, {"lora_metadata": None}):
        for patcher in (new_model, new_clip.patcher):
            patcher.set_attachments("lora_metadata", reading.metadata)
    return AppliedLora(new_model, new_clip, reading.used, reading.total, reading.unknown)


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: the tensors that the model uses, the patches made of them, and the unknown keys."""

    used_tensors: dict[str, Any]
    patches: Mapping[Any, Any]
    unknown: tuple[str, ...]
    metadata: dict[str, str] | None

    @property
    def used(self) -> int:
        return len(self.used_tensors)

    @property
    def total(self) -> int:
        return len(self.used_tensors) + len(self.unknown)


def _best_reading(path: Path, targets: Mapping[str, Any]) -> _Reading:
    """The file as ComfyUI reads it or, when ComfyUI then knows more of its keys, converted to kohya's names."""
    try:
        tensors, metadata = _loaded(path)
        plain = _match(comfy.lora_convert.convert_lora(tensors), (), metadata, targets)
    except Exception:  # torch, safetensors and the file system each raise their own types; the reader below gives a readable error
        log.debug("ComfyUI cannot read %s", path, exc_info=True)
        return _translated(path, targets)
    if not plain.unknown:
        return plain
    try:
        translated = _translated(path, targets)
    except UserError:  # a format that only ComfyUI knows
        return plain
    return translated if len(translated.unknown) < len(plain.unknown) else plain


def _loaded(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """Tensors and metadata from ComfyUI's loader, or from a PyTorch file after checking its sizes."""
    from ....trainer.lorafile.reading.tensors import PICKLED, load_tensors

    if path.suffix.lower() in PICKLED:
        return load_tensors(path).tensors, None
    tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    return tensors, metadata


def _translated(path: Path, targets: Mapping[str, Any]) -> _Reading:
    """The file converted to kohya's names from any known naming, including those of diffusers and PEFT, which ComfyUI does not read."""
    from ....trainer import lorafile

    weights = lorafile.read_lora(path)
    return _match(lorafile.to_kohya(weights).tensors, tuple(weights.unknown_keys), dict(weights.metadata), targets)


def _match(mapped: Mapping[str, Any], unknown: tuple[str, ...], metadata: dict[str, str] | None, targets: Mapping[str, Any]) -> _Reading:
    # copied out of the mapped file: Windows does not allow replacing a mapped file, and patches stay in ComfyUI's cache
    tensors = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in mapped.items()}
    patches = exact_patches(comfy.lora.load_lora(tensors, targets, False), metadata)
    keys = _taken(tensors, patches)
    rest = {key for key in tensors if key not in keys}
    return _Reading({key: value for key, value in tensors.items() if key in keys}, patches, tuple(sorted(rest | set(unknown))), metadata)


def _taken(tensors: Mapping[str, Any], loaded: Mapping[Any, Any]) -> set[str]:
    """The keys that ComfyUI used. Its adapters record theirs; those of plain differences are recognised by name."""
    taken: set[str] = set()
    for value in loaded.values():
        taken |= set(getattr(value, "loaded_keys", ()))
    if any(isinstance(value, tuple) for value in loaded.values()):
        taken |= {key for key in tensors if key.endswith((".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight"))}
    return taken & set(tensors)


def _check_fit(name: str, model: Any, clip: Any, reading: _Reading, family: str) -> None:
    wrong = [key for key, adapter in reading.patches.items() if not _fits(key, adapter, model, clip)]
    if not reading.patches:
        problem = f"none of its {reading.total} keys belongs to it ({_some(reading.unknown)})"
    elif wrong:
        problem = f"{len(wrong)} of {len(reading.patches)} layers have another shape ({_some(wrong)})"
    else:
        return
    origin = f"was made for {family} and " if family else ""
    raise UserError(
        f"The LoRA {name} {origin}does not fit this model.",
        f"Load the kind of model that the LoRA was made for, or choose another LoRA.\nWhy: {problem}.",
        kind="lora",
    )


def _blocks(model: Any) -> int:
    """The number of blocks of a transformer; 0 for a UNet."""
    blocks = getattr(model.model.diffusion_model, "blocks", None)
    return 0 if blocks is None else len(blocks)


def _fits(key: Any, patch: Any, model: Any, clip: Any) -> bool:
    """Whether a patch fits the shape of its weight. ComfyUI only logs a misfit and skips the patch."""
    name = getattr(patch, "name", "")
    if not isinstance(key, str) or (name not in (*_TENSORS, *_OTHER_FITS) and not isinstance(patch, tuple)):
        return True  # part of a weight, or an unknown algorithm
    weight = _weight(model.model if key.startswith("diffusion_model.") else clip.cond_stage_model, key)
    if weight is None:
        return False
    shape = tuple(weight.shape)
    if isinstance(patch, tuple):
        return tuple(patch[1][0].shape) == shape  # a plain difference, or a whole weight
    return _OTHER_FITS[name](patch.weights, shape) if name in _OTHER_FITS else _adapter_fits(name, patch.weights, shape)


def _weight(root: Any, key: str) -> Any:
    try:
        return comfy.utils.get_attr(root, key)
    except AttributeError:  # the layer has no bias
        return None


def _adapter_fits(name: str, weights: Sequence[Any], shape: tuple[int, ...]) -> bool:
    from ....trainer.lorafile.algorithms.weight_change import delta_shape

    tensors = dict(zip(_TENSORS[name], weights, strict=False))
    reshaped = tensors.pop("reshape", None)
    if reshaped is not None:
        return True  # ComfyUI enlarges the weight first
    tensors = {suffix: tensor for suffix, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    scale = tensors.pop("dora_scale", None)
    try:
        change = delta_shape(name, tensors)
    except (RuntimeError, ValueError, IndexError, KeyError):  # the file's tensors do not fit each other
        return False
    fits = change[0] == shape[0] and math.prod(change) == math.prod(shape)
    return fits and (scale is None or _scale_fits(tuple(scale.shape), shape))


def _glora_fits(weights: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """GLoRA adds the product of its last two matrices, in LyCORIS' order or, in older files, in reverse order."""
    wanted = (shape[0], math.prod(shape[1:]))
    sizes = [tuple(matrix.flatten(1).shape) for matrix in weights[2:4]]
    return any(left[1] == right[0] and (left[0], right[1]) == wanted for left, right in permutations(sizes))


def _rotation_fits(weights: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """OFT (blocks, size, size) and BOFT (stages, blocks, size, size) rotate the outputs block by block."""
    blocks = weights[0].shape
    return bool(blocks[-3] * blocks[-1] == shape[0])


_OTHER_FITS = {"glora": _glora_fits, "oft": _rotation_fits, "boft": _rotation_fits}


def _scale_fits(scale: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether there is a DoRA magnitude for each output or each input, because ComfyUI divides them by a norm of that shape."""
    if scale == shape[:1]:
        return True  # a row of numbers, one for each output
    axis = 0 if scale[:1] == shape[:1] else 1
    norm = tuple(size if index == axis else 1 for index, size in enumerate(shape))
    try:
        return tuple(torch.broadcast_shapes(scale, norm)) == norm and math.prod(scale) == math.prod(norm)
    except RuntimeError:
        return False


def _some(names: Any, most: int = 3) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
