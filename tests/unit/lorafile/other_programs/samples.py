"""Full-size LoRAs of each algorithm with a small rank, for tests with other tools: SD 1.5 and SDXL, UNet and text encoders."""

from __future__ import annotations

import torch

from tests.unit.lorafile.helpers import sd15_layers
from trainer.lorafile import LoraModule, LoraWeights

METADATA = {
    "ss_output_name": "sample", "ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.trigger_phrase": "ohwx girl", "ss_tag_frequency": '{"ohwx": {"ohwx": 3}}', "ss_sd_model_name": "base.safetensors",
}  # fmt: skip
SDXL_METADATA = {**METADATA, "ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
Sizes = dict[tuple[str, str], tuple[int, int, bool]]


def clip_layers(component: str, width: int, layers: int) -> Sizes:
    """The text encoder layers that kohya adapts."""
    sizes: Sizes = {}
    for layer in range(layers):
        prefix = f"text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            sizes[component, f"{prefix}.self_attn.{name}"] = (width, width, False)
        sizes[component, f"{prefix}.mlp.fc1"], sizes[component, f"{prefix}.mlp.fc2"] = (4 * width, width, False), (width, 4 * width, False)
    return sizes


def sd15_sizes() -> Sizes:
    """All 264 layers of a kohya SD 1.x LoRA."""
    return {**{("unet", name): size for name, size in sd15_layers().items()}, **clip_layers("te1", 768, 12)}


def sdxl_sizes() -> Sizes:
    """All 722 UNet layers and both text encoders of a kohya SDXL LoRA, from its architecture."""
    blocks = [(f"down_blocks.1.attentions.{i}", 640, 2) for i in range(2)] + [(f"down_blocks.2.attentions.{i}", 1280, 10) for i in range(2)]
    blocks += [("mid_block.attentions.0", 1280, 10)]
    blocks += [(f"up_blocks.0.attentions.{i}", 1280, 10) for i in range(3)] + [(f"up_blocks.1.attentions.{i}", 640, 2) for i in range(3)]
    sizes: Sizes = {}
    for block, width, depth in blocks:
        sizes["unet", f"{block}.proj_in"] = sizes["unet", f"{block}.proj_out"] = (width, width, False)
        for inner in (f"{block}.transformer_blocks.{i}" for i in range(depth)):
            for attention in ("attn1", "attn2"):
                for name in ("to_q", "to_k", "to_v", "to_out.0"):
                    context = attention == "attn2" and name in ("to_k", "to_v")
                    sizes["unet", f"{inner}.{attention}.{name}"] = (width, 2048 if context else width, False)
            sizes["unet", f"{inner}.ff.net.0.proj"], sizes["unet", f"{inner}.ff.net.2"] = (
                (8 * width, width, False),
                (width, 4 * width, False),
            )
    return {**sizes, **clip_layers("te1", 768, 12), **clip_layers("te2", 1280, 32)}


def sample(sizes: Sizes, family: str, algorithm: str = "lora", *, rank: int = 2, alpha: float = 1.0) -> LoraWeights:
    """A random LoRA in fp16; ``algorithm`` is lora, loha, lokr or dora."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.2).half()

    modules = []
    for (component, name), (out, into, conv) in sizes.items():
        tail = (1, 1) if conv else ()
        if algorithm == "loha":
            tensors = {f"hada_w{n}_{side}": matrix(*((out, rank) if side == "a" else (rank, into))) for n in "12" for side in "ab"}
        elif algorithm == "lokr":
            tensors = {"lokr_w1": matrix(4, 4), "lokr_w2_a": matrix(out // 4, rank), "lokr_w2_b": matrix(rank, into // 4)}
        else:
            tensors = {"lora_up.weight": matrix(out, rank, *tail), "lora_down.weight": matrix(rank, into, *tail)}
        if algorithm == "dora":
            tensors["dora_scale"] = (torch.rand(out, 1, *tail, generator=generator) + 0.5).half()
        modules.append(LoraModule(component, name, "lora" if algorithm == "dora" else algorithm, tensors, torch.tensor(alpha).half()))
    return LoraWeights(tuple(modules), family, "kohya", SDXL_METADATA if family == "sdxl" else METADATA)
