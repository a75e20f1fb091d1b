"""Small LoRAs with known content, key tables of real kohya files, and full-size UNets for other tools."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.lorafile import LoraModule, kohya_unet_key

DATA = Path(__file__).parent / "data"
# Full-size UNets as diffusers configures them
_COMMON = {"sample_size": 64, "layers_per_block": 2, "norm_num_groups": 32}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        **_COMMON, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "sdxl": {
        **_COMMON, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

# The attention layers of a transformer block that kohya's default targets include
LINEAR = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def key_table(name: str) -> dict[str, tuple[str, list[int]]]:
    """Number type and shape of each key of a real kohya file, ``sd15`` or ``sdxl``."""
    table: dict[str, tuple[str, list[int]]] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return {key: (dtype, shape) for key, (dtype, shape) in table.items()}


def sd15_layers() -> dict[str, tuple[int, int, bool]]:
    """Outputs, inputs and whether it is a 1x1 convolution of SD 1.5's 192 adapted UNet layers, by diffusers name, from its architecture."""
    channels = (320, 640, 1280, 1280)
    blocks = [(f"down_blocks.{i}.attentions.{j}", channels[i]) for i in range(3) for j in range(2)]
    blocks += [("mid_block.attentions.0", 1280)]
    blocks += [(f"up_blocks.{i}.attentions.{j}", channels[3 - i]) for i in range(1, 4) for j in range(3)]
    layers: dict[str, tuple[int, int, bool]] = {}
    for block, width in blocks:
        layers[f"{block}.proj_in"] = layers[f"{block}.proj_out"] = (width, width, True)
        inner = f"{block}.transformer_blocks.0"
        for layer in LINEAR:
            layers[f"{inner}.{layer}"] = (width, 768 if layer in ("attn2.to_k", "attn2.to_v") else width, False)
        layers[f"{inner}.ff.net.0.proj"] = (8 * width, width, False)
        layers[f"{inner}.ff.net.2"] = (width, 4 * width, False)
    return layers


def lora_tensors(
    layers: Mapping[str, tuple[int, int, bool]], *, rank: int = 4, alpha: float = 4.0, dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random kohya-format SD 1.x tensors for ``layers``."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs, conv) in layers.items():
        key, tail = kohya_unet_key("sd1", name), (1, 1) if conv else ()
        tensors[f"{key}.lora_down.weight"] = (torch.randn(rank, inputs, *tail, generator=generator) * 0.1).to(dtype)
        tensors[f"{key}.lora_up.weight"] = (torch.randn(outputs, rank, *tail, generator=generator) * 0.05).to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def small_layers() -> dict[str, tuple[int, int, bool]]:
    """The layers of SD 1.5's first attention block, which are enough for most tests."""
    return {name: size for name, size in sd15_layers().items() if name.startswith("down_blocks.0.attentions.0")}


def raw_safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file with any header, even an invalid one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def same_modules(first: tuple[LoraModule, ...], second: tuple[LoraModule, ...]) -> bool:
    """Whether both hold the same layers with bit-identical tensors, number types and alphas."""
    if {(m.component, m.name) for m in first} != {(m.component, m.name) for m in second}:
        return False
    others = {(module.component, module.name): module for module in second}
    for module in first:
        other = others[module.component, module.name]
        if module.algorithm != other.algorithm or set(module.tensors) != set(other.tensors):
            return False
        pairs = [(tensor, other.tensors[name]) for name, tensor in module.tensors.items()]
        if (module.alpha is None) != (other.alpha is None):
            return False
        if module.alpha is not None and other.alpha is not None:
            pairs.append((module.alpha, other.alpha))
        if any(a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b) for a, b in pairs):
            return False
    return True
