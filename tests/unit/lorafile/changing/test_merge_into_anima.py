"""LoRAs for Anima are merged into its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.core.errors import UserError
from trainer.lorafile import LoraModule, LoraWeights, merge_into_checkpoint

_NAMES = {
    "unet": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.norm3.linear_2", "proj_out"),
    "adapter": ("blocks.0.mlp.0",),
    "te1": ("layers.0.mlp.up_proj",),
}


def checkpoint(path: Path, prefix: str, text: str, blocks: int = 1) -> Path:
    keys = [f"{prefix}blocks.{index}.{name}.weight" for index in range(blocks) for name in ("self_attn.q_proj", "cross_attn.k_proj")]
    keys += [f"{prefix}llm_adapter.blocks.0.cross_attn.q_proj.weight", f"{prefix}llm_adapter.blocks.0.mlp.0.weight"]
    keys += [f"{text}layers.0.mlp.up_proj.weight", f"{prefix}blocks.0.adaln_modulation_mlp.2.weight", f"{prefix}final_layer.linear.weight"]
    save_file({key: torch.zeros(8, 6) for key in keys}, path)
    return path


def lora(*components: str) -> LoraWeights:
    tensors = {"lora_up.weight": torch.ones(8, 2), "lora_down.weight": torch.ones(2, 6)}
    names = [(component, name) for component in components for name in _NAMES[component]]
    modules = tuple(LoraModule(component, name, "lora", tensors, torch.tensor(1.0)) for component, name in names)
    return LoraWeights(modules, "anima", "kohya")


@pytest.mark.parametrize(
    ("prefix", "text"), [("net.", "model."), ("model.diffusion_model.", "cond_stage_model.qwen3_06b.transformer.model."), ("", "model.")]
)
def test_all_parts_are_merged_in_every_layout(tmp_path: Path, prefix: str, text: str) -> None:
    base = checkpoint(tmp_path / "base.safetensors", prefix, text)
    assert merge_into_checkpoint(base, [(lora("unet", "adapter", "te1"), 0.5)], tmp_path / "merged.safetensors") == 5
    merged = load_file(tmp_path / "merged.safetensors")
    changed = {key for key, tensor in merged.items() if tensor.any()}
    expected = {f"{prefix}blocks.0.self_attn.q_proj", f"{prefix}llm_adapter.blocks.0.mlp.0", f"{text}layers.0.mlp.up_proj"}
    expected |= {f"{prefix}blocks.0.adaln_modulation_mlp.2", f"{prefix}final_layer.linear"}
    assert changed == {f"{key}.weight" for key in expected}
    assert all(torch.equal(merged[key], torch.full((8, 6), 0.5)) for key in changed)  # 1/2 (alpha / rank) x 2 (rank) x 0.5


def test_models_of_another_family_or_depth_are_refused(tmp_path: Path) -> None:
    larger = checkpoint(tmp_path / "larger.safetensors", "net.", "model.", 40)
    with pytest.raises(UserError, match="made for Anima with 28 blocks and the model has 40"):
        merge_into_checkpoint(larger, [(lora("unet"), 1.0)], tmp_path / "out.safetensors")
    save_file({"model.diffusion_model.x.attn2.to_k.weight": torch.zeros(8, 1024)}, tmp_path / "sd2.safetensors")
    with pytest.raises(UserError, match=r"made for Anima and the model is Stable Diffusion 2\.x"):
        merge_into_checkpoint(tmp_path / "sd2.safetensors", [(lora("unet"), 1.0)], tmp_path / "out.safetensors")
