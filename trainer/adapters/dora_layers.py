"""DoRA's layers (Liu et al. 2024, arXiv 2402.09353): LoRA with a trained magnitude for each output. Imports torch: import this module late.

The weight of a layer is W' = m (W + D) / ||W + D|| with D = scale * up * down, as in ``lorafile/algorithms/dora.py``. Gradients treat the
norm as a constant (section 4.3). m starts as ||W||, so that training starts exactly at the base. peft's layers compute the same. Here the
norm and m / ||W + D|| are fp32 in every precision: in bf16, a norm has steps of 0.4 %, about as much as a LoRA changes a weight.

A file stores m as ``dora_scale`` (out, 1, ...). peft, LyCORIS and OneTrainer read it by the equation above; how ComfyUI reads it, and
how an export corrects that, is in ``lorafile/comfyui_dora.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..compute.lora_layers import LoraConv2d, LoraLayer, LoraLinear
from ..lorafile.algorithms.dora import output_norms


class DoraLayer(LoraLayer):
    """A frozen layer with LoRA beside it and a magnitude for each output, ``lora_magnitude`` (out,), fp32."""

    def __init__(self, base: Any, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        with torch.no_grad():
            self.lora_magnitude = nn.Parameter(output_norms(base.weight))

    def norms(self) -> torch.Tensor:
        """||W + D|| of each output, (out,) in fp32, without a gradient."""
        with torch.no_grad(), _full_precision(self.lora_magnitude):
            up, down = self.lora_B.weight.float().flatten(1), self.lora_A.weight.float().flatten(1)
            return output_norms(torch.addmm(self.base_layer.weight.float().flatten(1), up, down, alpha=self.scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """W' x, in the base layer's dtype. As in peft, dropout applies to all but the base layer's own result."""
        result: torch.Tensor = self.base_layer(x)
        dropped = self.lora_dropout(x)
        inner = self.base_layer(dropped) if self.uses_dropout else result
        change = self.lora_B(self.lora_A(dropped))
        with _full_precision(x):
            by_output = (-1, *[1] * (self.base_layer.weight.ndim - 2))
            gain = (self.lora_magnitude / self.norms()).view(by_output)
            bias = 0.0 if self.bias is None else self.bias.float().view(by_output)
            changed: torch.Tensor = result.float() + (gain - 1) * (inner.float() - bias) + gain * (change.float() * self.scale)
        return changed.to(result.dtype)


class DoraLinear(DoraLayer, LoraLinear):
    """DoRA on a Linear."""


class DoraConv2d(DoraLayer, LoraConv2d):
    """DoRA on a convolution."""


def _full_precision(like: torch.Tensor) -> AbstractContextManager[Any]:
    """No autocast on the device of ``like``. The meta device, on which runs are planned, has none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def with_dora(base: nn.Module, rank: int, scale: float, dropout: float) -> DoraLayer:
    """``base`` with DoRA of its kind."""
    return (DoraLinear if isinstance(base, nn.Linear) else DoraConv2d)(base, rank, scale, dropout)
