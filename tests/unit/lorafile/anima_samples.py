"""Small and full-size Anima LoRAs in memory, and the keys that other trainers give their layers."""

from __future__ import annotations

from trainer.lorafile import LoraWeights

from .anima_models import anima_parts, linear_layers
from .random_lora import random_lora

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
    return random_lora(sizes, algorithm, "anima", METADATA, rank=rank, alpha=alpha)


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
