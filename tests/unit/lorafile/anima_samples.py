"""Small and full-size Anima LoRAs in memory, and the keys that other trainers give their layers."""

from __future__ import annotations

import torch

from trainer.lorafile import LoraModule, LoraWeights

from .anima_models import anima_parts, linear_layers

METADATA = {"ss_output_name": "sample", "ss_base_model_version": "anima", "modelspec.architecture": "anima-preview/lora"}
ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def anima_sizes(blocks: int = 2, *, components: tuple[str, ...] = ("unet", "adapter", "te1")) -> dict[tuple[str, str], tuple[int, int]]:
    """(outputs, inputs) of the layers that kohya adapts by default, in blocks only, by component and name."""
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    for component in components:
        for name, size in linear_layers(anima_parts(blocks)[component]).items():
            if ("blocks." in name or "layers." in name) and ".norm" not in name:
                sizes[component, name] = size
    return sizes


def sample(sizes: dict[tuple[str, str], tuple[int, int]], algorithm: str = "lora", *, rank: int = 2, alpha: float = 1.0) -> LoraWeights:
    """A random LoRA in fp16; ``algorithm`` is lora, loha, lokr or dora."""
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
    return LoraWeights(tuple(modules), "anima", "kohya", METADATA)


def small_sample(algorithm: str = "lora", *, blocks: int = 1, rank: int = 2, alpha: float = 1.0) -> LoraWeights:
    """One layer of the text models, kohya's layers for each of ``blocks`` blocks, and of each kind of layer that kohya leaves out one."""
    sizes = anima_sizes()
    beyond = linear_layers(anima_parts()["unet"])
    few = {
        ("unet", f"transformer_blocks.{block}.{layer}"): sizes["unet", f"transformer_blocks.0.{layer}"]
        for block in range(blocks) for layer in (*ATTENTION, "ff.net.0.proj", "ff.net.2")
    }  # fmt: skip
    few |= {key: sizes[key] for key in (("adapter", "blocks.0.self_attn.o_proj"), ("te1", "layers.1.mlp.down_proj"))}
    few |= {("unet", name): beyond[name] for name in ("transformer_blocks.0.norm3.linear_1", "norm_out.linear_2", "proj_out")}
    return sample(few, algorithm, rank=rank, alpha=alpha)
