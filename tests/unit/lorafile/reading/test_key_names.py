"""LoRA files of every tool are recognised by their keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.lorafile.reading.files import attention_pairs, keys_in, written
from trainer.lorafile import inspect_lora, read_lora
from trainer.lorafile.naming.kohya_names import dotted


@pytest.mark.parametrize(
    ("naming", "form"),
    [
        ("kohya", "kohya"), ("kohya-ldm", "kohya"), ("simpletuner", "kohya"), ("diffusers-old", "diffusers-old"),
        ("diffusers-oldest", "diffusers-old"), ("diffusers", "diffusers"), ("diffusers-linear", "diffusers"), ("diffusers-peft", "peft"),
        ("peft", "peft"), ("peft-named", "peft"), ("unet-peft", "peft"), ("comfyui", "comfyui"), ("onetrainer-comfy", "peft"),
        ("onetrainer-original", "peft"), ("onetrainer-internal", "onetrainer"),
    ],
)  # fmt: skip
def test_naming_is_recognised(tmp_path: Path, naming: str, form: str) -> None:
    pairs = attention_pairs(small_layers())
    weights = read_lora(written(tmp_path / "x.safetensors", keys_in(naming, pairs)))
    assert weights.problems == ()
    assert weights.format == form
    assert weights.family == "sd1"
    assert {module.name for module in weights} == set(pairs)
    for module in weights:
        up, down = pairs[module.name]
        assert module.component == "unet"
        assert torch.equal(module.tensors["lora_up.weight"], up)
        assert torch.equal(module.tensors["lora_down.weight"], down)
        assert torch.allclose(module.delta(), up @ down)  # no alpha means scale 1


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "lora_te_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight",
        "text_encoder.encoder.layers.3.self_attn.q_proj.lora_B.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj.lora_up.weight",
        "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_B.default.weight",
        "clip_l.text_model.encoder.layers.3.self_attn.q_proj.lora_up.weight",
    ],
)
def test_text_encoder_key_is_recognised(tmp_path: Path, key: str) -> None:
    down = key.replace("lora_up", "lora_down").replace(".up.", ".down.").replace("lora_B", "lora_A")
    weights = read_lora(written(tmp_path / "x.safetensors", {key: torch.ones(768, 2), down: torch.ones(2, 768)}))
    assert [(m.component, m.name) for m in weights] == [("te1", "text_model.encoder.layers.3.self_attn.q_proj")]
    assert weights.family == "sd1"


def test_sdxl_text_encoders_are_distinguished(tmp_path: Path) -> None:
    tensors = {}
    for prefix, width in (("lora_te1", 768), ("lora_te2", 1280)):
        name = f"{prefix}_text_model_encoder_layers_0_mlp_fc2"
        tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = torch.ones(width, 2), torch.ones(2, 4 * width)
    weights = read_lora(written(tmp_path / "x.safetensors", tensors))
    assert sorted(module.component for module in weights) == ["te1", "te2"]
    assert weights.family == "sdxl"


def test_real_key_tables_are_read_completely(tmp_path: Path) -> None:
    from tests.unit.lorafile.helpers import key_table

    for table, family, count in (("sd15", "sd1", 264), ("sdxl", "sdxl", 794)):
        tensors = {key: torch.full(shape, 0.5, dtype=torch.float16) for key, (_, shape) in key_table(table).items() if "te2" not in key}
        info = inspect_lora(written(tmp_path / f"{table}.safetensors", tensors))
        assert (info.family, info.format, info.algorithm, info.problems) == (family, "kohya", "lora", ())
        assert sum(info.targets.values()) == count


def test_onetrainer_embeddings_are_kept_separately(tmp_path: Path) -> None:
    tensors = {**lora_tensors(small_layers()), "bundle_emb.ohwx.clip_l": torch.ones(2, 768)}
    weights = read_lora(written(tmp_path / "x.safetensors", tensors))
    assert list(weights.extra) == ["bundle_emb.ohwx.clip_l"]
    assert weights.problems == () and "embedding" in weights.notes[0]


def test_dotted_gives_diffusers_names() -> None:
    assert (
        dotted("mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj") == "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    )
