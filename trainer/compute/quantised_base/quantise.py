"""Quantise a frozen denoiser: its weights are stored in 8 or 4 bits and dequantised where a layer computes.

int8 and fp8 are plain torch, so that they run on any device, and include convolutions, which bitsandbytes' layers do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .codes import bitsandbytes

if TYPE_CHECKING:
    import torch
    from torch import nn

# Few weights, on which everything after them depends: not worth the loss.
_NOT_QUANTISED = ("conv_in", "conv_out", "time_embedding", "add_embedding")


def quantise(denoiser: nn.Module, kind: str, device: torch.device) -> None:
    """Replace the linear layers and convolutions of ``denoiser`` in place by ones that hold ``kind`` (a key of ``BITS``), on ``device``.

    The layers are moved and quantised one by one, so that ``device`` never holds the whole base. Call it before LoRA goes in: DoRA's
    magnitudes must be those of the weights that are computed with. Raises UserError when ``nf4`` lacks its package.
    """
    from torch import nn

    if kind == "nf4":
        bitsandbytes()
    # names only: a list of the layers would keep every layer that was moved to the device until the last is quantised
    names = [
        name
        for name, module in denoiser.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and not name.startswith(_NOT_QUANTISED) and name
    ]
    for name in names:
        parent, _, last = name.rpartition(".")
        holder = denoiser.get_submodule(parent)
        setattr(holder, last, quantised_layer(holder.get_submodule(last).to(device), kind))


def quantised_layer(layer: nn.Module, kind: str) -> nn.Module:
    """``layer`` (Linear or Conv2d) with its weight quantised; its bias stays."""
    from torch import nn

    from .quantised_layers import QuantisedConv2d, QuantisedLinear

    if isinstance(layer, nn.Linear):
        return QuantisedLinear(layer, kind)
    assert isinstance(layer, nn.Conv2d)
    return QuantisedConv2d(layer, kind)
