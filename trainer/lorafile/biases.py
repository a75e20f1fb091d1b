"""Changes of biases in LoRA files: ``diff_b`` (ComfyUI, LyCORIS) and ``b_norm`` (LyCORIS' norms).

They are added to the bias, and stand beside a change of the weight of any kind, or alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .weights import LoraModule

NAMES = ("diff_b", "b_norm")


def bias_of(module: LoraModule) -> torch.Tensor | None:
    """What is added to the layer's bias at strength 1, (out,), in fp32; None where that stays."""
    found = next((module.tensors[name] for name in NAMES if name in module.tensors), None)
    return None if found is None else found.float()


def without_bias(module: LoraModule) -> LoraModule | None:
    """``module`` as far as it changes the weight; None where it changes the bias alone."""
    if module.algorithm == "bias":
        return None
    return replace(module, tensors={name: tensor for name, tensor in module.tensors.items() if name not in NAMES})


def with_bias(module: LoraModule, bias: torch.Tensor) -> LoraModule:
    """``module`` with a change of the bias, under the name that its kind has for it."""
    name = "b_norm" if module.algorithm == "norm" else "diff_b"
    return replace(module, tensors={**module.tensors, name: bias})
