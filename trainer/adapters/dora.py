"""DoRA's layers (Liu et al. 2024, arXiv 2402.09353): LoRA whose outputs keep a trained magnitude. Imports torch: import this module late.

With the frozen weight W (out, in, ...), its change D = scale * up * down and a magnitude m for each output, a layer's weight is

    W' = m (W + D) / ||W + D||        (equation 5)

where ||.|| is the norm of each output's weights (all axes but the first). Gradients take the norm for a constant (section 4.3). m starts as
||W||, so that training starts at the base exactly. This is what peft's layers compute. The norm and m / ||W + D|| are fp32 here whatever
the layer computes in: in bf16 a norm has steps of 0.4 %, about as much as a LoRA changes a weight by.

A file stores m as ``dora_scale`` (out, 1, ...). peft, LyCORIS and OneTrainer read it by the equation above; what ComfyUI makes of it, and
how that is put right, is in ``lorafile/dora.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..compute.lora_layers import LoraConv2d, LoraLayer, LoraLinear


class DoraLayer(LoraLayer):
    """A frozen layer with LoRA beside it and a magnitude for each output, ``lora_magnitude`` (out,), fp32."""

    def __init__(self, base: Any, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        with torch.no_grad():
            self.lora_magnitude = nn.Parameter(base.weight.float().flatten(1).norm(dim=1))

    def norms(self) -> torch.Tensor:
        """||W + D|| of each output, (out,) in fp32, without a gradient."""
        with torch.no_grad(), _whole_precision(self.lora_magnitude):
            up, down = self.lora_B.weight.float().flatten(1), self.lora_A.weight.float().flatten(1)
            norms: torch.Tensor = torch.addmm(self.base_layer.weight.float().flatten(1), up, down, alpha=self.scale).norm(dim=1)
            return norms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What W' makes of ``x``, in the base's dtype; where inputs are dropped out, of all but the base's own part as in peft."""
        result: torch.Tensor = self.base_layer(x)
        given = self.lora_dropout(x)
        inner = self.base_layer(given) if self.drops else result
        part = self.lora_B(self.lora_A(given))
        with _whole_precision(x):
            by_output = (-1, *[1] * (self.base_layer.weight.ndim - 2))
            gain = (self.lora_magnitude / self.norms()).view(by_output)
            bias = 0.0 if self.bias is None else self.bias.float().view(by_output)
            changed: torch.Tensor = result.float() + (gain - 1) * (inner.float() - bias) + gain * (part.float() * self.scale)
        return changed.to(result.dtype)


class DoraLinear(DoraLayer, LoraLinear):
    """DoRA on a Linear."""


class DoraConv2d(DoraLayer, LoraConv2d):
    """DoRA on a convolution."""


def _whole_precision(like: torch.Tensor) -> AbstractContextManager[Any]:
    """Autocast off for the device of ``like``; on the meta device, where sizes are planned, there is none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def with_dora(base: nn.Module, rank: int, scale: float, dropout: float) -> DoraLayer:
    """``base`` with DoRA of its kind."""
    return (DoraLinear if isinstance(base, nn.Linear) else DoraConv2d)(base, rank, scale, dropout)
