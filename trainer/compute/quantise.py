"""A frozen base in fewer bits: weights are stored in 8 or 4 bits, and unpacked where a layer computes.

- ``int8``: one scale an output channel, the largest absolute weight over 127 (absmax, as LLM.int8 of Dettmers et al. 2022, section 2).
- ``fp8``: float8_e4m3fn (Micikevicius et al. 2022) with one scale an output channel, which keeps small weights out of its coarse end.
- ``nf4``: 4-bit NormalFloat in blocks of 64 (QLoRA, Dettmers et al. 2023, section 3), by bitsandbytes' kernels.

int8 and fp8 are plain torch, so that they run on any device, and hold convolutions, which bitsandbytes' layers do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .packing import _bitsandbytes

if TYPE_CHECKING:
    import torch
    from torch import nn

BITS = {"int8": 8, "fp8": 8, "nf4": 4}
# Few weights on which everything behind them depends: not worth the loss.
_KEPT = ("conv_in", "conv_out", "time_embedding", "add_embedding")


def quantise(unet: nn.Module, kind: str, device: torch.device) -> None:
    """Replace the linear layers and convolutions of ``unet`` in place by ones that hold ``kind`` (a key of ``BITS``), on ``device``.

    One layer is moved and packed after the other, so that ``device`` never holds the unpacked base. Call it before LoRA goes in: DoRA's
    magnitudes must be those of the weights that are computed with. Raises UserError when ``nf4`` lacks its package.
    """
    from torch import nn

    if kind == "nf4":
        _bitsandbytes()
    # their names alone: a list of the layers would keep every unpacked weight, moved to the device, until the last is packed
    names = [
        name for name, module in unet.named_modules() if type(module) in (nn.Linear, nn.Conv2d) and not name.startswith(_KEPT) and name
    ]
    for name in names:
        parent, _, last = name.rpartition(".")
        holder = unet.get_submodule(parent)
        setattr(holder, last, packed_layer(holder.get_submodule(last).to(device), kind))


def packed_layer(layer: nn.Module, kind: str) -> nn.Module:
    """``layer`` (Linear or Conv2d) with its weight packed; its bias stays."""
    from torch import nn

    linear, convolution = _layers()
    if isinstance(layer, nn.Linear):
        return linear(layer, kind)  # type: ignore[no-any-return]
    assert isinstance(layer, nn.Conv2d)
    return convolution(layer, kind)  # type: ignore[no-any-return]


def packed_bytes(unet: nn.Module) -> int:
    """Bytes of the codes and scales in ``unet``."""
    return sum(buffer.numel() * buffer.element_size() for name, buffer in unet.named_buffers() if name.endswith((".codes", ".scales")))


_CLASSES: list[Any] = []


def _layers() -> Any:
    """The two layer classes: made at the first call, so that importing this module does not import torch."""
    if not _CLASSES:
        from .quantised_layers import PackedConv2d, PackedLinear

        _CLASSES.extend((PackedLinear, PackedConv2d))
    return _CLASSES
