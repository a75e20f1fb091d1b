"""Changes of biases in LoRA files: ``diff_b`` (ComfyUI, LyCORIS) and ``b_norm`` (LyCORIS' norms).

They are added to the bias, with or without a change of the weight.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .algorithms.kinds import BIASES
from .weights import LoraModule


def bias_of(module: LoraModule) -> torch.Tensor | None:
    """The change of the layer's bias at strength 1, (out,) in fp32; None when the bias stays."""
    found = next((module.tensors[name] for name in BIASES if name in module.tensors), None)
    return None if found is None else found.float()


def without_bias(module: LoraModule) -> LoraModule | None:
    """``module`` without its bias change; None when it changes only the bias."""
    if module.algorithm == "bias":
        return None
    return replace(module, tensors={name: tensor for name, tensor in module.tensors.items() if name not in BIASES})


def with_bias(module: LoraModule, bias: torch.Tensor) -> LoraModule:
    """``module`` with a bias change, under the name that its algorithm uses."""
    name = "b_norm" if module.algorithm == "norm" else "diff_b"
    return replace(module, tensors={**module.tensors, name: bias})
