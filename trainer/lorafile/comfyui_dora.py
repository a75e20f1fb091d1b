"""How ComfyUI's own loader reads DoRA, and magnitudes with which it computes the trained weight.

W is a layer's weight (out, in, ...), D its change scale * up * down, m the ``dora_scale`` of the file, ||.|| the norm of the weights of
each output (axes 1 and up), and ||.||in that of each input (axes 0, 2 and up).

    trained (the paper, peft, LyCORIS, OneTrainer)   W' = m (W + D) / ||W + D||           m (out, 1, ...)
    LyCORIS' older files                             W' = m (W + D) / ||W + D||in         m (1, in, ...)
    ComfyUI, m.shape[0] == out                       W' = m (W + D) / (||W|| + eps)
    ComfyUI, any other m                             W' = m (W + D) / (||W + D||in + eps)

(ComfyUI: ``comfy/weight_adapter/base.py``, ``weight_decompose``, the same in 0.3.64 and 0.33.0; eps is that of fp32, 1.2e-7.)

With magnitudes of outputs, each row that ComfyUI computes is therefore off by the factor ||W + D|| / ||W||: 3 to 6 % of the effect of a
typical LoRA, and more for larger D. No shape of ``dora_scale`` makes ComfyUI divide by ||W + D||: its other branch always divides by the
norms of inputs. But the values can be chosen so that the result is right:

    m* = m (||W|| + eps) / ||W + D||                 so that   m* (W + D) / (||W|| + eps) = m (W + D) / ||W + D||

exactly, for the base W with which m* was computed. On another base, the result is off by the ratio of the norms of both bases. A file with
m* states that in its metadata (``DORA_NORM_KEY``), because every other program reads it wrongly, and Load LoRA must know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..core.errors import UserError
from .algorithms.dora import EPSILON, output_norms
from .algorithms.weight_change import delta_shape
from .weights import LoraModule, LoraWeights

DORA_NORM_KEY = "animelora.dora_norm"
OF_BASE = "of the base"  # the value of DORA_NORM_KEY when magnitudes are m*
DORA_BASE_KEY = "animelora.dora_base"  # the name of that base


def has_output_magnitudes(module: LoraModule) -> bool:
    """Whether ComfyUI treats the module's magnitudes as those of outputs, by the rule of its ``weight_decompose``."""
    scale = module.tensors.get("dora_scale")
    return scale is not None and scale.ndim > 0 and scale.shape[0] == _outputs(module)


def uses_base_norm(metadata: Mapping[str, str]) -> bool:
    """Whether a file's magnitudes belong to ||W||, as ComfyUI computes DoRA."""
    return metadata.get(DORA_NORM_KEY) == OF_BASE


def for_comfyui(weights: LoraWeights, weight_of: Callable[[LoraModule], torch.Tensor], base: str) -> LoraWeights:
    """``weights`` with the magnitudes m* for the base model called ``base``. ``weight_of`` returns the base's weight of a module.

    They are fp32: in fp16, each would round a whole row of the weight by up to 0.02 %. Raises UserError for a file that has such magnitudes
    already.
    """
    if uses_base_norm(weights.metadata):
        of = weights.metadata.get(DORA_BASE_KEY) or "one base model"
        raise UserError(
            f"This DoRA was already exported for ComfyUI's own loader and {of}.", "Export the original LoRA instead.", kind="lora"
        )
    modules = tuple(_for_comfyui(module, weight_of(module)) if has_output_magnitudes(module) else module for module in weights)
    return replace(weights, modules=modules, metadata={**weights.metadata, DORA_NORM_KEY: OF_BASE, DORA_BASE_KEY: base})


def _for_comfyui(module: LoraModule, weight: torch.Tensor) -> LoraModule:
    weight = weight.float()
    norm = output_norms(weight) + EPSILON
    changed = output_norms(weight + module.delta().reshape(weight.shape))
    scale = module.tensors["dora_scale"]
    moved = scale.float() * (norm / changed.clamp_min(EPSILON)).reshape(scale.shape)
    return replace(module, tensors={**module.tensors, "dora_scale": moved})


def _outputs(module: LoraModule) -> int:
    return delta_shape(module.algorithm, module.tensors)[0]
