"""Check that the shapes of a module's tensors fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .kinds import BIASES, PASSED_THROUGH
from .weight_change import delta_shape


def shape_problem(algorithm: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with the shapes of one module's tensors; empty when they fit."""
    if algorithm == "lora" and (problem := _lora_problem(tensors)):
        return problem
    if problem := _bias_problem(tensors):
        return problem
    if algorithm in PASSED_THROUGH or algorithm == "bias" or (algorithm in ("full", "norm") and "dora_scale" not in tensors):
        return ""
    try:
        change = delta_shape(algorithm, tensors)
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0]
    bias = next((tensors[name] for name in BIASES if name in tensors), None)
    if bias is not None and bias.numel() != change[0] and "reshape_weight" not in tensors:
        return f"a bias change of shape {list(bias.shape)} does not have one number for each output of {list(change)}"
    scale = tensors.get("dora_scale")
    if scale is not None and not dora_scale_fits(tuple(scale.shape), change, flattened=True):
        return f"dora_scale {list(scale.shape)} has one number neither for each output nor for each input of {list(change)}"
    return ""


def _bias_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    found = [name for name in sorted(BIASES) if name in tensors]
    if len(found) > 1:
        return "it has both diff_b and b_norm"
    return f"{found[0]} {list(tensors[found[0]].shape)} is not one-dimensional" if found and tensors[found[0]].ndim != 1 else ""


def _lora_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    up, down, mid = tensors["lora_up.weight"], tensors["lora_down.weight"], tensors.get("lora_mid.weight")
    if up.ndim not in (2, 4) or down.ndim not in (2, 4):
        return f"lora_up {list(up.shape)} and lora_down {list(down.shape)} are not matrices"
    if mid is not None:
        fits = mid.ndim == 4 and up.shape[1] == mid.shape[0] and down.shape[0] == mid.shape[1]
        return "" if fits else f"lora_mid {list(mid.shape)} does not fit between lora_up {list(up.shape)} and lora_down {list(down.shape)}"
    if up.shape[1] != down.shape[0] or (up.ndim == 4 and tuple(up.shape[2:]) != (1, 1)):
        return f"lora_up {list(up.shape)} and lora_down {list(down.shape)} cannot be multiplied"
    return ""


def dora_scale_fits(scale: tuple[int, ...], weight: tuple[int, ...], *, flattened: bool = False) -> bool:
    """Whether ``apply_dora`` accepts a ``dora_scale`` of this shape for a weight (out, in, ...) of the other one.

    ``flattened``: the weight may be a convolution's in matrix form (LyCORIS' LoHa and LoKr), with a column for each input and position of
    the kernel.
    """
    count = math.prod(scale)
    if not scale or not weight or not count:
        return False
    if count == weight[0] and scale[0] == weight[0]:
        return True
    if len(weight) < 2:
        return False
    return count == weight[1] or (flattened and len(weight) == 2 and len(scale) == 4 and weight[1] % count == 0)
