"""The weights that a model had before any LoRA, by the modules of a LoRA, with stand-ins for ComfyUI's models and key names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.lorafile import LoraModule, LoraWeights

Helper = Callable[[str], ModuleType]
LAYER, TEXT_LAYER = "mid_block.attentions.0.proj_in", "text_model.encoder.layers.0.mlp.fc1"
KEYS = {"lora_unet_mid_block_attentions_0_proj_in": "diffusion_model.middle_block.1.proj_in.weight"}
TEXT_KEYS = {"lora_te_text_model_encoder_layers_0_mlp_fc1": "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"}


def patcher(weights: dict[str, torch.Tensor], factor: float = 1.0) -> Any:
    """A stand-in for ComfyUI's ModelPatcher: each key's list begins with the stored weight and the function that converts it."""

    def convert(weight: torch.Tensor, inplace: bool) -> torch.Tensor:
        return weight * factor

    patches = {key: [(weight, convert), "a patch of another LoRA"] for key, weight in weights.items()}
    return SimpleNamespace(model=None, get_key_patches=lambda: patches)


def module(component: str, name: str, outputs: int, inputs: int) -> LoraModule:
    tensors = {"lora_up.weight": torch.zeros(outputs, 2), "lora_down.weight": torch.zeros(2, inputs)}
    return LoraModule(component, name, "lora", tensors)


def lora(*modules: LoraModule) -> LoraWeights:
    return LoraWeights(modules, "sd1", "kohya")


@pytest.fixture
def original(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``nodes/shared/loras/original_weights.py`` with ComfyUI's key names of one UNet and one text encoder layer."""
    comfy_lora = ModuleType("comfy.lora")
    comfy_lora.model_lora_keys_unet = lambda model, keys: {**keys, **KEYS}  # type: ignore[attr-defined]
    comfy_lora.model_lora_keys_clip = lambda clip, keys: {**keys, **TEXT_KEYS}  # type: ignore[attr-defined]
    comfy = ModuleType("comfy")
    comfy.lora = comfy_lora  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.lora", comfy_lora)
    found = helper("loras.original_weights")
    monkeypatch.setattr(found, "comfy", comfy)
    return found


def test_weights_are_the_stored_ones_converted_to_fp32(original: ModuleType) -> None:
    stored, text = torch.randn(6, 4).half(), torch.randn(8, 4).bfloat16()
    clip = SimpleNamespace(cond_stage_model=None, patcher=patcher({TEXT_KEYS["lora_te_text_model_encoder_layers_0_mlp_fc1"]: text}))
    unet_module, text_module = module("unet", LAYER, 6, 4), module("te1", TEXT_LAYER, 8, 4)
    model = patcher({KEYS["lora_unet_mid_block_attentions_0_proj_in"]: stored}, factor=3.0)  # as a scaled fp8 layer converts its weight
    weight_of = original.original_weights(lora(unet_module, text_module), model, clip)
    assert weight_of(unet_module).dtype == weight_of(text_module).dtype == torch.float32
    torch.testing.assert_close(weight_of(unet_module), 3 * stored.float())
    torch.testing.assert_close(weight_of(text_module), text.float())


def test_missing_layer_is_refused(original: ModuleType) -> None:
    other = module("unet", "mid_block.attentions.0.proj_out", 6, 4)
    with pytest.raises(original.UserError, match="lacks the layer unet") as caught:
        original.original_weights(lora(other), patcher({}), None)(other)
    assert "kind of model" in caught.value.hint


def test_text_encoder_layer_without_clip_asks_for_the_clip_input(original: ModuleType) -> None:
    text = module("te1", TEXT_LAYER, 8, 4)
    with pytest.raises(original.UserError) as caught:
        original.original_weights(lora(text), patcher({}), None)(text)
    assert "clip input" in caught.value.hint


def test_layer_of_another_size_is_refused(original: ModuleType) -> None:
    changed = module("unet", LAYER, 6, 5)
    model = patcher({KEYS["lora_unet_mid_block_attentions_0_proj_in"]: torch.zeros(6, 4)})
    with pytest.raises(original.UserError, match="another size"):
        original.original_weights(lora(changed), model, None)(changed)
