"""LoRA files for Anima in the names of every trainer are read and described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.core.errors import UserError
from trainer.lorafile import convert, inspect_lora, read_lora, save_lora, scan_lora, write_lora
from trainer.lorafile.describing.card import card

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..anima_samples import small_sample

RENAMED = {  # how other trainers write kohya's lora_unet_blocks_0_self_attn_q_proj and its tensors
    "OneTrainer for ComfyUI": "diffusion_model.blocks.0.self_attn.q_proj.{lora_A,lora_B}.weight alpha",
    "ai-toolkit": "diffusion_model.blocks.0.self_attn.q_proj.{lora_A,lora_B}.weight",
    "diffusion-pipe": "diffusion_model.blocks.0.self_attn.q_proj.{lora_A,lora_B}.weight",
    "SimpleTuner": "transformer.transformer_blocks.0.attn1.to_q.{lora_A,lora_B}.weight",
    "PEFT": "base_model.model.transformer_blocks.0.attn1.to_q.{lora_A,lora_B}.default.weight",
    "PEFT with original names": "base_model.model.blocks.0.self_attn.q_proj.{lora_A,lora_B}.weight",
    "LyCORIS": "lycoris_blocks_0_self_attn_q_proj.{lora_down,lora_up}.weight alpha",
    "SimpleTuner with LyCORIS": "lycoris_transformer_blocks_0_attn1_to_q.{lora_down,lora_up}.weight alpha",
    "without a prefix": "transformer_blocks.0.attn1.to_q.{lora_A,lora_B}.weight",
}


@pytest.mark.parametrize("trainer", RENAMED)
def test_names_of_other_trainers_stand_for_the_same_layer(tmp_path: Path, trainer: str) -> None:
    pattern, _, alpha = RENAMED[trainer].partition(" ")
    prefix, names = pattern.split("{")[0], pattern.split("{")[1].split("}")[0].split(",")
    tail = pattern.split("}")[1]
    down, up = torch.randn(2, 2048), torch.randn(2048, 2)
    tensors = {f"{prefix}{names[0]}{tail}": down, f"{prefix}{names[1]}{tail}": up}
    if alpha:
        tensors[f"{prefix}alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_lora(tmp_path / "a.safetensors")
    assert (weights.family, weights.problems) == ("anima", ())
    (module,) = weights.modules
    assert (module.component, module.name, module.scale) == ("unet", "transformer_blocks.0.attn1.to_q", 0.5 if alpha else 1.0)
    assert torch.allclose(module.delta(), up @ down * module.scale, atol=1e-4)


def test_text_parts_of_other_trainers_are_read(tmp_path: Path) -> None:
    names = {
        "lora_unet_llm_adapter_blocks_5_mlp_0": ("adapter", "blocks.5.mlp.0"),
        "lora_te_layers_27_self_attn_o_proj": ("te1", "layers.27.self_attn.o_proj"),
        "lycoris_llm_adapter_blocks_0_cross_attn_k_proj": ("adapter", "blocks.0.cross_attn.k_proj"),
    }
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(8, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_lora(tmp_path / "a.safetensors")
    assert weights.family == "anima"
    assert {(module.component, module.name) for module in weights} == set(names.values())


def test_alpha_of_diffusers_metadata_applies_by_part(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name in ("transformer.transformer_blocks.0.attn1.to_q", "text_conditioner.blocks.0.self_attn.q_proj"):
        width = 2048 if name.startswith("tr") else 1024
        tensors |= {f"{name}.lora_A.weight": torch.randn(4, width), f"{name}.lora_B.weight": torch.randn(width, 4)}
    config = {"transformer.lora_alpha": 8, "transformer.r": 4, "text_conditioner.lora_alpha": 1, "text_conditioner.r": 4}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    assert {module.component: module.scale for module in read_lora(tmp_path / "a.safetensors")} == {"unet": 2.0, "adapter": 0.25}


@pytest.mark.parametrize(
    ("name", "out", "into"),
    [
        ("transformer.transformer_blocks.0.attn2.to_k", 2048, 2048),  # LTX-Video, as wide as Anima
        ("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152),  # PixArt
        ("transformer.transformer_blocks.0.ff.net.0.proj", 7680, 1920),  # CogVideoX
        ("transformer.transformer_blocks.0.attn.to_q", 3072, 3072),  # FLUX
    ],
)
def test_other_transformers_are_refused_by_name(tmp_path: Path, name: str, out: int, into: int) -> None:
    tensors = {f"{name}.lora_A.weight": torch.randn(2, into), f"{name}.lora_B.weight": torch.randn(out, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a transformer \(DiT\) model"):
        read_lora(tmp_path / "a.safetensors")


def test_wan_files_are_refused_as_video(tmp_path: Path) -> None:
    tensors = {f"lora_unet_blocks_0_cross_attn_{name}.lora_{side}.weight": torch.randn(2, 2) for name in "qkv" for side in ("down", "up")}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a video model"):
        read_lora(tmp_path / "a.safetensors")


def test_layers_of_another_width_are_a_custom_model_in_kohyas_names(tmp_path: Path) -> None:
    names = ("self_attn_q_proj", "self_attn_k_proj")
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        key = f"lora_unet_blocks_0_{name}"
        tensors |= {
            f"{key}.lora_down.weight": torch.randn(2, 64),
            f"{key}.lora_up.weight": torch.randn(64, 2),
            f"{key}.alpha": torch.ones(()),
        }
    save_lora(tmp_path / "a.safetensors", tensors, {})
    assert "its layers have the sizes of a custom model" in scan_lora(tmp_path / "a.safetensors").notes


def test_information_names_family_blocks_and_programs_that_load_nothing(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", convert(small_sample(blocks=28), "kohya"))
    info = inspect_lora(tmp_path / "a.safetensors")
    assert (info.family, info.blocks, info.targets) == ("anima", 28, {"adapter": 1, "te1": 1, "unet": 283})
    assert any("diffusers loads nothing from kohya's names" in note for note in info.notes)
    assert card(tmp_path / "a.safetensors").family == "Anima"
    write_lora(tmp_path / "b.safetensors", convert(small_sample(), "comfyui"))
    assert not any("diffusers" in note for note in inspect_lora(tmp_path / "b.safetensors").notes)
