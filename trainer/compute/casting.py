"""In which dtype layers compute: that of their input, or autocast's. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

_COPY = "_animelora_copy"


def outside_autocast(inputs: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``compute`` of ``inputs`` in autocast's dtype, with autocast off within: Functions of ours cast for themselves."""
    kind = inputs.device.type
    if inputs.is_meta or not torch.is_autocast_enabled(kind):
        return compute(inputs)
    with torch.autocast(kind, enabled=False):
        return compute(inputs.to(torch.get_autocast_dtype(kind)))


def computed_in(inputs: torch.Tensor) -> torch.dtype:
    """The dtype in which a product of ``inputs`` is computed: autocast's within it, else theirs."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if not inputs.is_meta and torch.is_autocast_enabled(kind) else inputs.dtype


def low(weight: torch.Tensor) -> torch.Tensor:
    """The copy of ``weight`` in the dtype that is computed in, where there is one; else itself."""
    copy: torch.Tensor = getattr(weight, _COPY, weight)
    return copy


class LowCopies:
    """Copies of the weights of the casting layers of ``model`` in ``dtype``: within it, the layers compute with these.

    Casting each weight when it is needed, and its gradient afterwards, are four kernels a module, some hundreds a step; all of them
    together are one (``refresh``).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        layers = (module for module in model.modules() if isinstance(module, CastingLinear | CastingConv2d))
        self._weights = [layer.weight for layer in layers if layer.weight.dtype != dtype]
        self._copies = [weight.detach().to(dtype).requires_grad_() for weight in self._weights]
        self._by_weight = {id(weight): copy for weight, copy in zip(self._weights, self._copies, strict=True)}

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The copy of ``weight``, of which a pass gives the gradient; itself where there is none."""
        return self._by_weight.get(id(weight), weight)

    def refresh(self) -> None:
        """Copy the weights as they are now."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._weights)

    def __enter__(self) -> None:
        for weight, copy in zip(self._weights, self._copies, strict=True):
            setattr(weight, _COPY, copy)

    def __exit__(self, *_: object) -> None:
        for weight in self._weights:
            delattr(weight, _COPY)


class CastingLinear(nn.Linear):
    """A Linear whose weight is cast to the dtype that is computed in; its gradient arrives in the weight's own.

    To that of the input would be once up and once down again, where autocast has an input in fp32 (behind a norm) and the weight is a low
    copy.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return functional.linear(input, low(self.weight).to(computed_in(input)))


class CastingConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h', w')."""
        weight = low(self.weight).to(computed_in(input))
        return functional.conv2d(input, weight, None, self.stride, self.padding, self.dilation, self.groups)
