"""LoRA files for Anima in the names of every trainer: read, described, converted, merged, reduced."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.core.errors import UserError
from trainer.lorafile import convert, inspect_lora, merge, mismatch, read_lora, reduce_rank, save_lora, scan_lora, to_kohya, write_lora
from trainer.lorafile.changing.blocks import move_to_depth
from trainer.lorafile.describing.card import card

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..helpers import same_modules
from .samples import ATTENTION, anima_sizes, sample


def small(algorithm: str = "lora", blocks: int = 1, **rank_and_alpha: float) -> object:
    """One layer of each component, and the first block's attention for each of ``blocks`` blocks."""
    sizes = anima_sizes()
    few = {
        ("unet", f"transformer_blocks.{block}.{layer}"): sizes["unet", f"transformer_blocks.0.{layer}"]
        for block in range(blocks) for layer in (*ATTENTION, "ff.net.0.proj", "ff.net.2")
    }  # fmt: skip
    few |= {key: sizes[key] for key in (("adapter", "blocks.0.self_attn.o_proj"), ("te1", "layers.1.mlp.down_proj"))}
    return sample(few, algorithm, **rank_and_alpha)  # type: ignore[arg-type]


def test_kohya_format_has_the_keys_of_kohyas_trainer(tmp_path: Path) -> None:
    # keys as networks/lora_anima.py of kohya's sd-scripts builds them: prefix, module names, dots replaced
    tensors = to_kohya(sample(anima_sizes(28, components=("unet",)))).tensors
    modules = {key.split(".")[0] for key in tensors}
    assert len(modules) == 280
    assert {key.partition(".")[2] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    attention = {f"{part}_{name}" for part in ("self_attn", "cross_attn") for name in ("q_proj", "k_proj", "v_proj", "output_proj")}
    assert {re.sub(r"lora_unet_blocks_\d+_", "", name) for name in modules} == attention | {"mlp_layer1", "mlp_layer2"}
    assert sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith("alpha")) * 8 == 22_937_600  # at rank 16


@pytest.mark.parametrize("form", ["kohya", "comfyui", "peft", "diffusers"])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "dora"])
def test_every_format_reads_back_bit_for_bit(tmp_path: Path, form: str, algorithm: str) -> None:
    weights = small(algorithm)
    if form in ("peft", "diffusers"):
        if algorithm in ("loha", "lokr") or (algorithm == "dora" and form == "diffusers"):
            with pytest.raises(UserError):
                convert(weights, form)
            return
        weights = type(weights)(tuple(m for m in weights if m.component != "te1"), "anima", "kohya", weights.metadata)
    write_lora(tmp_path / "a.safetensors", convert(weights, form))
    read = read_lora(tmp_path / "a.safetensors")
    assert (read.family, read.format, read.problems) == ("anima", "peft" if form == "diffusers" else form, ())
    assert same_modules(read.modules, weights.modules)


def test_comfyui_format_has_pefts_tensors_and_no_alpha() -> None:
    converted = convert(small(alpha=1.0, rank=2), "comfyui")
    assert {key.rpartition(".lora_")[2] for key in converted.tensors} == {"A.weight", "B.weight"}
    assert "diffusion_model.blocks.0.self_attn.output_proj.lora_A.weight" in converted.tensors
    assert "diffusion_model.llm_adapter.blocks.0.self_attn.o_proj.lora_B.weight" in converted.tensors
    assert "text_encoders.qwen3_06b.transformer.model.layers.1.mlp.down_proj.lora_B.weight" in converted.tensors


def test_diffusers_format_leaves_out_qwen3_and_reports_it() -> None:
    converted = convert(small(), "diffusers")
    assert "transformer.transformer_blocks.0.attn2.to_out.0.lora_A.weight" in converted.tensors
    assert "text_conditioner.blocks.0.self_attn.o_proj.lora_B.weight" in converted.tensors
    assert not any("layers.1" in key for key in converted.tensors)
    assert any("1 layers of Qwen3 were left out" in note for note in converted.notes)


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
    tensors = {}
    for name in names:
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(8, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_lora(tmp_path / "a.safetensors")
    assert weights.family == "anima"
    assert {(module.component, module.name) for module in weights} == set(names.values())


def test_alpha_of_diffusers_metadata_applies_by_part(tmp_path: Path) -> None:
    tensors = {}
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
    tensors = {}
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
    write_lora(tmp_path / "a.safetensors", convert(small(blocks=28), "kohya"))
    info = inspect_lora(tmp_path / "a.safetensors")
    assert (info.family, info.blocks, info.targets) == ("anima", 28, {"adapter": 1, "te1": 1, "unet": 280})
    assert any("diffusers loads nothing from kohya's names" in note for note in info.notes)
    assert card(tmp_path / "a.safetensors").family == "Anima"
    write_lora(tmp_path / "b.safetensors", convert(small(), "comfyui"))
    assert not any("diffusers" in note for note in inspect_lora(tmp_path / "b.safetensors").notes)


def test_rank_is_reduced_and_kohyas_network_module_stays(tmp_path: Path) -> None:
    weights = small("lokr")
    weights = type(weights)(
        weights.modules, "anima", "kohya", {**weights.metadata, "ss_network_dim": "4", "ss_network_module": "lycoris.kohya"}
    )
    reduced, report = reduce_rank(weights, 8)
    assert report.changed == len(weights.modules)
    assert reduced.metadata["ss_network_module"] == "networks.lora_anima"
    assert all(module.algorithm == "lora" for module in reduced)


def test_loras_of_two_formats_are_merged(tmp_path: Path) -> None:
    first, second = small(), small(rank=3, alpha=3.0)
    write_lora(tmp_path / "b.safetensors", convert(second, "comfyui"))
    merged, _ = merge([(first, 0.5), (read_lora(tmp_path / "b.safetensors"), 1.0)])
    for one, two, both in zip(first, second, merged, strict=True):
        assert torch.allclose(both.delta(), one.delta() * 0.5 + two.delta(), atol=1e-4)


def test_families_with_text_of_the_same_width_are_told_apart() -> None:
    assert mismatch("anima", "sd2", 1024, 1024) == (
        "This LoRA was made for Anima and the model is Stable Diffusion 2.x: they have different layers."
    )
    assert mismatch("anima", "anima", 1024, 1024) == ""


def test_moving_to_forty_blocks_skips_the_inserted_ones(tmp_path: Path) -> None:
    weights = small(blocks=28)
    moved = move_to_depth(weights, 40)
    positions = {int(m.name.split(".")[1]) for m in moved if m.component == "unet"}
    assert positions == set(range(40)) - {2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36}
    by_name = {(m.component, m.name): m for m in moved}
    for old, new in ((0, 0), (2, 3), (14, 20), (27, 39)):  # examples that other converters publish
        before = next(m for m in weights if m.name == f"transformer_blocks.{old}.attn1.to_q")
        assert by_name["unet", f"transformer_blocks.{new}.attn1.to_q"].tensors is before.tensors
    assert ("adapter", "blocks.0.self_attn.o_proj") in by_name
    write_lora(tmp_path / "a.safetensors", convert(moved, "kohya"))
    assert "lora_unet_blocks_39_mlp_layer2.alpha" in load_file(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="made for a model with 40 blocks"):
        move_to_depth(read_lora(tmp_path / "a.safetensors"), 40)
    with pytest.raises(UserError, match="not known"):
        move_to_depth(weights, 52)
