"""Anima LoRAs in every format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.core.errors import UserError
from trainer.lorafile import convert, read_lora, to_kohya, write_lora

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..anima_samples import anima_sizes, sample, small_sample
from ..helpers import same_modules


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
    weights = small_sample(algorithm)
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
    converted = convert(small_sample(alpha=1.0, rank=2), "comfyui")
    assert {key.rpartition(".lora_")[2] for key in converted.tensors} == {"A.weight", "B.weight"}
    assert "diffusion_model.blocks.0.self_attn.output_proj.lora_A.weight" in converted.tensors
    assert "diffusion_model.llm_adapter.blocks.0.self_attn.o_proj.lora_B.weight" in converted.tensors
    assert "text_encoders.qwen3_06b.transformer.model.layers.1.mlp.down_proj.lora_B.weight" in converted.tensors


def test_diffusers_format_leaves_out_qwen3_and_reports_it() -> None:
    converted = convert(small_sample(), "diffusers")
    assert "transformer.transformer_blocks.0.attn2.to_out.0.lora_A.weight" in converted.tensors
    assert "text_conditioner.blocks.0.self_attn.o_proj.lora_B.weight" in converted.tensors
    assert not any("layers.1" in key for key in converted.tensors)
    assert any("1 layers of Qwen3 were left out" in note for note in converted.notes)
