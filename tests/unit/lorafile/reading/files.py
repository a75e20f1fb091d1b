"""LoRA files in the naming of each tool."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.unit.lorafile.helpers import sd15_layers

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def attention_pairs(layers: dict[str, tuple[int, int, bool]]) -> Pairs:
    """name -> (up, down) of the attention layers."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(out, 4, generator=generator) * 0.1, torch.randn(4, into, generator=generator) * 0.1)
        for name, (out, into, _) in layers.items()
        if ".attn" in name
    }


def written(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def keys_in(naming: str, pairs: Pairs) -> dict[str, torch.Tensor]:
    """The tensors of ``pairs`` in one naming, spelled as the program that writes it spells them."""
    result = {}
    for name, (up, down) in pairs.items():
        parent, layer = (name[: -len(".to_out.0")], "to_out") if name.endswith(".to_out.0") else name.rsplit(".", 1)
        ldm = name.replace("down_blocks.0.attentions.0", "input_blocks.1.1")
        up_key, down_key = {
            "kohya": (f"lora_unet_{name.replace('.', '_')}.lora_up.weight", f"lora_unet_{name.replace('.', '_')}.lora_down.weight"),
            "kohya-ldm": (f"lora_unet_{ldm.replace('.', '_')}.lora_up.weight", f"lora_unet_{ldm.replace('.', '_')}.lora_down.weight"),
            "simpletuner": (f"lycoris_{name.replace('.', '_')}.lora_up.weight", f"lycoris_{name.replace('.', '_')}.lora_down.weight"),
            "diffusers-old": (f"unet.{parent}.processor.{layer}_lora.up.weight", f"unet.{parent}.processor.{layer}_lora.down.weight"),
            "diffusers-oldest": (f"{parent}.processor.{layer}_lora.up.weight", f"{parent}.processor.{layer}_lora.down.weight"),
            "diffusers": (f"unet.{name}.lora.up.weight", f"unet.{name}.lora.down.weight"),
            "diffusers-linear": (f"unet.{name}.lora_linear_layer.up.weight", f"unet.{name}.lora_linear_layer.down.weight"),
            "diffusers-peft": (f"unet.{name}.lora_B.weight", f"unet.{name}.lora_A.weight"),
            "peft": (f"base_model.model.{name}.lora_B.weight", f"base_model.model.{name}.lora_A.weight"),
            "peft-named": (f"base_model.model.{name}.lora_B.default.weight", f"base_model.model.{name}.lora_A.default.weight"),
            "unet-peft": (f"unet.base_model.model.{name}.lora_B.weight", f"unet.base_model.model.{name}.lora_A.weight"),
            "comfyui": (f"diffusion_model.{ldm}.lora_up.weight", f"diffusion_model.{ldm}.lora_down.weight"),
            "onetrainer-comfy": (f"diffusion_model.{ldm}.lora_B.weight", f"diffusion_model.{ldm}.lora_A.weight"),
            "onetrainer-original": (f"{ldm}.lora_B.weight", f"{ldm}.lora_A.weight"),
            "onetrainer-internal": (f"unet.{name}.lora_up.weight", f"unet.{name}.lora_down.weight"),
        }[naming]
        result[up_key], result[down_key] = up, down
    return result


def cloneofsimo_order(geglu: str) -> list[str]:
    """The order of layers in diffusers 0.11's UNet according to its constructors: down, up, mid; attn1, ff, attn2."""
    layers = sd15_layers()
    blocks = list(dict.fromkeys(name.split(".transformer_blocks")[0] for name in layers if "transformer_blocks" in name))
    blocks = [b for b in blocks if b.startswith("down")] + [b for b in blocks if b.startswith("up")] + ["mid_block.attentions.0"]
    first, second = ([f"{a}.to_{x}" for x in ("q", "k", "v")] + [f"{a}.to_out.0"] for a in ("attn1", "attn2"))
    order = {"middle": [*first, "ff.net.0.proj", *second], "last": [*first, *second, "ff.net.0.proj"], "none": [*first, *second]}[geglu]
    return [f"{block}.transformer_blocks.0.{layer}" for block in blocks for layer in order]


def listed(geglu: str) -> tuple[list[str], list[torch.Tensor]]:
    names, layers = cloneofsimo_order(geglu), sd15_layers()
    tensors: list[torch.Tensor] = []
    for index, name in enumerate(names):
        out, into, _ = layers[name]
        tensors += [torch.full((out, 2), float(index + 1)), torch.full((2, into), 1.0)]
    return names, tensors
