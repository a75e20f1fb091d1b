"""In which dtype layers compute: that of their input, or autocast's. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


def outside_autocast(inputs: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``compute`` of ``inputs`` in autocast's dtype, with autocast off within: Functions of ours cast for themselves."""
    kind = inputs.device.type
    if inputs.is_meta or not torch.is_autocast_enabled(kind):
        return compute(inputs)
    with torch.autocast(kind, enabled=False):
        return compute(inputs.to(torch.get_autocast_dtype(kind)))


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
