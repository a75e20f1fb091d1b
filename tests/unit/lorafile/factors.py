"""Random factors of each algorithm, and files that hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
)  # fmt: skip

METADATA = {"ss_output_name": "style", "modelspec.title": "Style", "ss_network_dim": "4", "ss_network_alpha": "2.0", "custom": "ünïcode ✓"}


def lora_file(path: Path, **options: object) -> Path:
    tensors = lora_tensors(small_layers(), **options)  # type: ignore[arg-type]
    for name, width in (("self_attn_q_proj", 768), ("mlp_fc1", 768)):
        key = f"lora_te_text_model_encoder_layers_0_{name}"
        rank = 4
        dtype = tensors["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"].dtype
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, width, generator=torch.Generator().manual_seed(3)).to(dtype)
        tensors[f"{key}.lora_up.weight"] = torch.randn(
            768 if "q_proj" in name else 3072, rank, generator=torch.Generator().manual_seed(4)
        ).to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(float(options.get("alpha", 4.0)), dtype=dtype)  # type: ignore[arg-type]
    save_file(tensors, path, METADATA)
    return path


def lokr(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {"lokr_w1": torch.randn(4, 4), "lokr_w2_a": torch.randn(outputs // 4, 2), "lokr_w2_b": torch.randn(2, inputs // 4)}


def weights_of(*modules: LoraModule) -> LoraWeights:
    return LoraWeights(modules, "sd1", "kohya")


def loha(outputs: int, inputs: int, rank: int) -> dict[str, torch.Tensor]:
    return {f"hada_w{n}_{side}": torch.randn((outputs, rank) if side == "a" else (rank, inputs)) for n in "12" for side in "ab"}
