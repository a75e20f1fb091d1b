"""PEFT folders and adapter configurations give the weights that PEFT computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unit.lorafile.helpers import small_layers
from tests.unit.lorafile.reading.files import attention_pairs, keys_in, written
from trainer.core.errors import UserError
from trainer.lorafile import read_lora
from trainer.lorafile.algorithms.dora import apply_dora

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def peft_model() -> torch.nn.Module:
    """A module tree with SD names that peft can wrap."""
    block = torch.nn.Module()
    for attention, width in (("attn1", 320), ("attn2", 768)):
        child = torch.nn.Module()
        child.to_q, child.to_k = torch.nn.Linear(320, 320), torch.nn.Linear(width, 320)
        setattr(block, attention, child)
    root = torch.nn.Module()
    root.down_blocks = torch.nn.ModuleList([torch.nn.Module()])
    root.down_blocks[0].attentions = torch.nn.ModuleList([torch.nn.Module()])
    root.down_blocks[0].attentions[0].transformer_blocks = torch.nn.ModuleList([block])
    return root


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_folder_gives_same_weights_as_peft(tmp_path: Path, rslora: bool, dora: bool) -> None:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], alpha_pattern={"attn2.to_k": 3}, use_rslora=rslora, use_dora=dora
    )
    model = peft.get_peft_model(peft_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(tmp_path)
    weights = read_lora(tmp_path)
    assert weights.algorithm == ("dora" if dora else "lora")
    assert len(weights.modules) == 4
    layers = dict(model.named_modules())
    for module in weights:
        layer = layers[f"base_model.model.{module.name}"]
        assert torch.allclose(module.delta(), layer.get_delta_weight("default"), atol=1e-6)
        if dora:
            before = layer.base_layer.weight.detach().clone()
            ours = apply_dora(before, module.delta(), module.tensors["dora_scale"])
            layer.merge()
            assert torch.allclose(ours, layer.base_layer.weight, atol=1e-5)


def test_scale_in_diffusers_adapter_metadata_is_used(tmp_path: Path) -> None:
    pairs = attention_pairs(small_layers())
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"{BLOCK}.attn1.to_q": 2}}
    path = written(tmp_path / "x.safetensors", keys_in("diffusers-peft", pairs), {"lora_adapter_metadata": json.dumps(settings)})
    scales = {module.name: module.scale for module in read_lora(path)}
    assert scales.pop(f"{BLOCK}.attn1.to_q") == 0.5
    assert set(scales.values()) == {2.0}


@pytest.mark.parametrize(
    ("naming", "name", "scale"),
    [("kohya", "x", 1.0), ("diffusers", "x", 1.0), ("diffusers-peft", "x", 4.0), ("diffusers", "adapter_model", 4.0)],
)
def test_adapter_config_applies_only_to_peft_files(tmp_path: Path, naming: str, name: str, scale: float) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 4}), encoding="utf-8")
    pairs = attention_pairs(small_layers())
    weights = read_lora(written(tmp_path / f"{name}.safetensors", keys_in(naming, pairs)))
    assert {module.scale for module in weights} == {scale}
    assert any("adapter_config.json" in note for note in weights.notes) == (scale != 1.0)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "x"}, {"lora_alpha": [1]}, {"lora_alpha": True}, {"lora_alpha": float("nan")}, {"lora_alpha": 10**400},
        {"lora_alpha": 8, "alpha_pattern": ["a"]}, {"lora_alpha": 8, "alpha_pattern": {"to_q": "q"}}, {"lora_alpha": 8, "use_rslora": "no"},
    ],
)  # fmt: skip
def test_invalid_adapter_configuration_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    pairs = keys_in("diffusers-peft", attention_pairs(small_layers()))
    path = written(tmp_path / "x.safetensors", pairs)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json has an invalid value: "):
        read_lora(path)
    (tmp_path / "adapter_config.json").unlink()
    written(path, pairs, {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})})
    with pytest.raises(UserError, match=r"adapter metadata has an invalid value: "):
        read_lora(path)


def test_adapter_configuration_with_huge_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", keys_in("diffusers-peft", attention_pairs(small_layers())))
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": ' + "1" * 5000 + "}", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json is not a JSON object"):
        read_lora(path)
