"""LoRA layers of ours and of PEFT with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.compute.casting import CastingConv2d, CastingLinear
from trainer.compute.lora_layers import LoraLayer

RANK = 4
Gradients = dict[str, torch.Tensor]


def by_peft(model: Any, alpha: float = 6.0, dropout: float = 0.0, **more: Any) -> Any:
    """The same with peft's layer in the place of ours, set not to cast its input."""
    ours = model[0]
    assert isinstance(ours, LoraLayer)
    theirs: Any = nn.Sequential(ours.base_layer)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=alpha, lora_dropout=dropout, target_modules=["0"], **more), theirs)
    theirs[0].cast_input_dtype_enabled = False
    for matrix, kept in ((theirs[0].lora_A["default"], ours.lora_A), (theirs[0].lora_B["default"], ours.lora_B)):
        matrix.__class__ = {nn.Linear: CastingLinear, nn.Conv2d: CastingConv2d}[type(matrix)]
        matrix.weight = nn.Parameter(kept.weight.detach().clone())
    return theirs


def results(model: Any, inputs: torch.Tensor, *, autocast: bool = False, recompute: bool = False) -> tuple[torch.Tensor, Gradients]:
    """What ``model`` computes, and the derivatives of a weighted sum of it by everything that has one."""
    given = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        computed = checkpoint(model, given, use_reentrant=False) if recompute else model(given)
    assert isinstance(computed, torch.Tensor)
    (computed.float() * torch.linspace(-1, 1, computed.numel()).view(computed.shape)).sum().backward()
    found = {name.replace(".default", ""): parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert given.grad is not None
    return computed.detach(), {**found, "x": given.grad}
