"""Random LoRAs in memory, for families whose samples list sizes of layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.lorafile import LoraModule, LoraWeights


def random_lora(
    sizes: Mapping[tuple[str, str], tuple[int, int]], algorithm: str, family: str, metadata: dict[str, str], *, rank: int, alpha: float
) -> LoraWeights:
    """In fp16; ``sizes``: (outputs, inputs) by component and name; ``algorithm`` is lora, loha, lokr or dora."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.2).half()

    modules = []
    for (component, name), (out, into) in sizes.items():
        if algorithm == "loha":
            tensors = {f"hada_w{n}_{side}": matrix(*((out, rank) if side == "a" else (rank, into))) for n in "12" for side in "ab"}
        elif algorithm == "lokr":
            tensors = {"lokr_w1": matrix(4, 4), "lokr_w2_a": matrix(out // 4, rank), "lokr_w2_b": matrix(rank, into // 4)}
        else:
            tensors = {"lora_up.weight": matrix(out, rank), "lora_down.weight": matrix(rank, into)}
        if algorithm == "dora":
            tensors["dora_scale"] = (torch.rand(out, 1, generator=generator) + 0.5).half()
        kind = "lora" if algorithm == "dora" else algorithm
        modules.append(LoraModule(component, name, kind, tensors, torch.tensor(alpha).half()))
    return LoraWeights(tuple(modules), family, "kohya", metadata)
