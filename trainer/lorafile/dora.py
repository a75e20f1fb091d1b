"""DoRA's magnitudes in files: what the programs make of them, and magnitudes with which ComfyUI's own loader gives the trained weight.

W is a layer's weight (out, in, ...), D its change scale * up * down, m what the file has as ``dora_scale``, ||.|| the norm of all weights
of an output (axes 1 and up), ||.||in that of all weights of an input (axes 0, 2 and up).

    trained (the paper, peft, LyCORIS, OneTrainer)   W' = m (W + D) / ||W + D||           m (out, 1, ...)
    LyCORIS' older files                             W' = m (W + D) / ||W + D||in         m (1, in, ...)
    ComfyUI, m.shape[0] == out                       W' = m (W + D) / (||W|| + eps)
    ComfyUI, any other m                             W' = m (W + D) / (||W + D||in + eps)

(ComfyUI: ``comfy/weight_adapter/base.py``, ``weight_decompose``, the same in 0.3.64 and 0.33.0; eps is that of fp32, 1.2e-7.)

So for an m of outputs, ComfyUI is off by the factor ||W + D|| / ||W|| in each row: 3 to 6 % of a usual LoRA's effect, and more the larger D
is. No shape of ``dora_scale`` makes it divide by ||W + D||: its other branch divides by the norms of inputs, whatever these are multiplied
by. What can be chosen is the number:

    m* = m (||W|| + eps) / ||W + D||                 so that   m* (W + D) / (||W|| + eps) = m (W + D) / ||W + D||

exactly, for the base W with which m* was computed. A file with m* says so in its metadata (``KEY``), since every other program, and Load
LoRA without knowing, would read it wrongly. On another base it is as near as the ratios of the norms of both bases are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..core.errors import UserError
from .weights import LoraModule, LoraWeights

KEY = "animelora.dora_norm"
OF_BASE = "of the base"  # the value of KEY where magnitudes are m*
BASE_KEY = "animelora.dora_base"  # the name of that base
EPSILON = torch.finfo(torch.float32).eps


def by_output(module: LoraModule) -> bool:
    """Whether ComfyUI takes the module's magnitudes for those of outputs: the rule of its ``weight_decompose``."""
    scale = module.tensors.get("dora_scale")
    return scale is not None and scale.ndim > 0 and scale.shape[0] == _outputs(module)


def is_of_base(metadata: Mapping[str, str]) -> bool:
    """Whether a file's magnitudes are to be divided by ||W||, as ComfyUI does it."""
    return metadata.get(KEY) == OF_BASE


def for_comfyui(weights: LoraWeights, weight_of: Callable[[LoraModule], torch.Tensor], base: str) -> LoraWeights:
    """``weights`` with the magnitudes m* for the base that is called ``base``, whose weight of a module ``weight_of`` gives.

    They are fp32: fp16 would round a whole weight by 0.02 %. Raises UserError for a file whose magnitudes are for a base already.
    """
    if is_of_base(weights.metadata):
        of = weights.metadata.get(BASE_KEY) or "one base model"
        raise UserError(
            f"This DoRA was exported for ComfyUI's own loader and {of} already.", "Export the LoRA that it was made from.", kind="lora"
        )
    modules = tuple(_for_comfyui(module, weight_of(module)) if by_output(module) else module for module in weights)
    return replace(weights, modules=modules, metadata={**weights.metadata, KEY: OF_BASE, BASE_KEY: base})


def _for_comfyui(module: LoraModule, weight: torch.Tensor) -> LoraModule:
    weight = weight.float()
    norm = weight.flatten(1).norm(dim=1) + EPSILON
    changed = (weight + module.delta().reshape(weight.shape)).flatten(1).norm(dim=1)
    scale = module.tensors["dora_scale"]
    moved = scale.float() * (norm / changed.clamp_min(EPSILON)).reshape(scale.shape)
    return replace(module, tensors={**module.tensors, "dora_scale": moved})


def _outputs(module: LoraModule) -> int:
    from . import algorithms

    return algorithms.delta_shape(module.algorithm, {k: v for k, v in module.tensors.items() if k != "dora_scale"})[0]
