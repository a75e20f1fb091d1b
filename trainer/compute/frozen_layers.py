"""Layers that keep the weight of a frozen layer in another form. Imports torch: import this module late."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class MatrixProduct(nn.Module):
    """A frozen Linear or 1 x 1 convolution as a product of rows (n, in), outside of autograd: LoRA layers compute with it directly."""

    def product(self, inputs: torch.Tensor, *, needs_gradient: bool) -> torch.Tensor:
        """(n, in) to (n, out). ``needs_gradient``: ``input_gradient`` will be called for these ``inputs``."""
        raise NotImplementedError

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of inputs of ``shape`` (n, in) from the ``gradient`` (n, out) of the result."""
        raise NotImplementedError


class FrozenConv2d(nn.Conv2d):
    """Stands in for a frozen Conv2d and keeps its weight in another form; zero padding, as everywhere in Stable Diffusion."""

    def __new__(cls, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """peft makes LoRA's convolutions by calling the class of the layer that they adapt: those are plain ones."""
        return super().__new__(cls) if isinstance(layer, nn.Module) else nn.Conv2d(layer, *args, **kwargs)

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        assert layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
            setattr(self, name, getattr(layer, name))
        self.transposed, self.output_padding = False, (0, 0)
