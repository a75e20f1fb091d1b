"""LoRA files for Lumina 2 are read in the names of kohya's trainer, LyCORIS and ComfyUI, and those of other models are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.core.errors import UserError
from trainer.lorafile import convert, read_lora, scan_lora, write_lora

from ..lumina2_samples import METADATA, lumina2_sizes, one_block, sample


def factors(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
    """A LoRA of one layer under kohya's name."""
    return {f"{name}.lora_down.weight": torch.randn(2, into), f"{name}.lora_up.weight": torch.randn(out, 2)}


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize("algorithm", ["lora", "lokr", "dora"])
def test_files_are_read_as_they_were_written(tmp_path: Path, form: str, algorithm: str) -> None:
    weights = sample(one_block(), algorithm)
    write_lora(tmp_path / "a.safetensors", convert(weights, form))
    again = read_lora(tmp_path / "a.safetensors")
    assert (again.family, again.format, again.problems) == ("lumina2", form, ())
    read = {module.name: module for module in again}
    assert read.keys() == {module.name for module in weights}
    for module in weights:
        found = read[module.name]
        assert (found.component, found.algorithm, found.scale) == ("unet", module.algorithm, module.scale)
        assert found.tensors.keys() == module.tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in module.tensors.items())


def test_names_are_those_that_kohyas_trainer_gives_the_layers(tmp_path: Path) -> None:
    # networks/lora_lumina.py joins "lora_unet" and the names of modules with underscores
    sizes = lumina2_sizes()
    assert len(sizes) == 5 * 30 + 28 + 2
    keys = convert(sample({name: (8, 8) for name in sizes}), "kohya").tensors
    assert {key.partition(".")[0] for key in keys} == {f"lora_unet_{name.replace('.', '_')}" for name in sizes}
    assert "lora_unet_noise_refiner_1_adaLN_modulation_1.lora_down.weight" in keys
    assert all(key.endswith((".lora_down.weight", ".lora_up.weight", ".alpha")) for key in keys)


def test_the_prefix_of_lycoris_and_the_text_encoder_of_kohyas_trainer_are_read(tmp_path: Path) -> None:
    tensors = factors("lycoris_layers_25_attention_qkv", 3840, 2304) | factors("lora_te_layers_3_self_attn_q_proj", 2048, 2304)
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_lora(tmp_path / "a.safetensors")
    assert weights.family == "lumina2"
    names = {(module.component, module.name) for module in weights}
    assert names == {("unet", "layers.25.attention.qkv"), ("te1", "layers.3.self_attn.q_proj")}


def test_the_last_layer_of_anima_stays_animas(tmp_path: Path) -> None:
    tensors = factors("lora_unet_final_layer_linear", 64, 2048) | factors("lora_unet_blocks_0_mlp_layer1", 8192, 2048)
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_lora(tmp_path / "a.safetensors")
    assert weights.family == "anima" and {module.name for module in weights} == {"proj_out", "transformer_blocks.0.ff.net.0.proj"}


@pytest.mark.parametrize("prefix", ["lora_unet_layers_0_attention_", "diffusion_model.layers.0.attention."])
def test_files_for_z_image_are_refused_by_their_sizes(tmp_path: Path, prefix: str) -> None:
    tensors = factors(f"{prefix}qkv", 11520, 3840) | factors(f"{prefix}out", 3840, 3840)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="layers of other sizes than Lumina 2's"):
        read_lora(tmp_path / "a.safetensors")


def test_a_layer_of_a_wrong_size_is_refused(tmp_path: Path) -> None:
    sizes = {**one_block(), "layers.0.attention.qkv": (3840, 2048)}
    converted = convert(sample(sizes), "kohya")
    save_file(converted.tensors, tmp_path / "a.safetensors", METADATA)
    with pytest.raises(UserError, match=r"layers\.0\.attention\.qkv is 3840 x 2048 and should be 3840 x 2304"):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_the_names_of_diffusers_are_refused(form: str) -> None:
    with pytest.raises(UserError, match="Lumina 2 has other layers there"):
        convert(sample(one_block()), form)


def test_info_says_that_diffusers_cannot_load_a_file(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", convert(sample(one_block()), "kohya"))
    assert any("diffusers cannot load this file" in note for note in scan_lora(tmp_path / "a.safetensors").notes)
    assert len(load_file(tmp_path / "a.safetensors")) == 3 * len(one_block())
