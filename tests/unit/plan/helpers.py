"""How much memory a forward pass keeps."""

from __future__ import annotations

from typing import Any

import torch


def bytes_kept_for_backward(unet: Any, side: int, batch: int) -> int:
    """Bytes that one forward pass on the CPU keeps for the backward pass, without the weights."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # an address can be reused once it is free
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(torch.randn(batch, 4, side, side), torch.zeros(batch, dtype=torch.int64), torch.randn(batch, 77, 64))
    return sum(kept.values())
