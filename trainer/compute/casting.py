"""The dtype in which layers compute: that of their input, or autocast's. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from . import torch_private

_COPY = "_animelora_copy"


def outside_autocast(inputs: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``compute`` of ``inputs`` in autocast's dtype, with autocast switched off inside: our autograd functions cast for themselves."""
    kind = inputs.device.type
    if inputs.is_meta or not torch.is_autocast_enabled(kind):
        return compute(inputs)
    with torch.autocast(kind, enabled=False):
        return compute(inputs.to(torch.get_autocast_dtype(kind)))


def compute_dtype(inputs: torch.Tensor) -> torch.dtype:
    """The dtype in which a product of ``inputs`` is computed: autocast's inside of it, else theirs."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if not inputs.is_meta and torch.is_autocast_enabled(kind) else inputs.dtype


def low_precision(weight: torch.Tensor) -> torch.Tensor:
    """The copy of ``weight`` in the compute dtype if there is one (see :class:`LowPrecisionCopies`), else ``weight``."""
    copy: torch.Tensor = getattr(weight, _COPY, weight)
    return copy


class LowPrecisionCopies:
    """Copies of the weights of the casting layers of ``model`` in ``dtype``. As a context manager it makes the layers compute with them.

    To cast each weight when it is needed, and its gradient afterwards, takes four kernels a module and some hundreds a step. All weights
    together are cast by one kernel (``refresh``).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        layers = (module for module in model.modules() if isinstance(module, CastingLinear | CastingConv2d))
        self._weights = [layer.weight for layer in layers if layer.weight.dtype != dtype]
        self._copies = [weight.detach().to(dtype).requires_grad_() for weight in self._weights]
        self._by_weight = {id(weight): copy for weight, copy in zip(self._weights, self._copies, strict=True)}

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The copy of ``weight``, which gets the gradient of a pass; ``weight`` itself where there is no copy."""
        return self._by_weight.get(id(weight), weight)

    def refresh(self) -> None:
        """Update the copies from the weights."""
        if self._copies:
            with torch.no_grad():
                torch_private.foreach_copy(self._copies, self._weights)

    def __enter__(self) -> None:
        for weight, copy in zip(self._weights, self._copies, strict=True):
            setattr(weight, _COPY, copy)

    def __exit__(self, *_: object) -> None:
        for weight in self._weights:
            delattr(weight, _COPY)


class CastingLinear(nn.Linear):
    """A Linear whose weight is cast to the compute dtype; its gradient has the weight's own dtype.

    To cast to the dtype of the input would mean a cast up and a cast down again where autocast has an fp32 input (behind a norm) and the
    weight is a low-precision copy.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return functional.linear(input, low_precision(self.weight).to(compute_dtype(input)))


class CastingConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) to (batch, out, h', w')."""
        weight = low_precision(self.weight).to(compute_dtype(input))
        return functional.conv2d(input, weight, None, self.stride, self.padding, self.dilation, self.groups)
