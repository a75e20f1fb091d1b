"""Layers that compute in the dtype of their input. Imports torch: import this module late."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class CastingLinear(nn.Linear):
    """A Linear whose weight is cast to the dtype of the input; its gradient arrives in the weight's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return functional.linear(input, self.weight.to(input.dtype))


class CastingConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h', w')."""
        weight = self.weight.to(input.dtype)
        return functional.conv2d(input, weight, None, self.stride, self.padding, self.dilation, self.groups)
