"""diffusers' own loader loads every export without leftover keys and computes the same weight changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from tests.unit.lorafile.helpers import UNETS
from tests.unit.lorafile.other_programs.compatibility import record
from tests.unit.lorafile.other_programs.samples import clip_layers, sample, sd15_sizes, sdxl_sizes
from trainer.lorafile import convert, write_lora
from trainer.lorafile.algorithms.weight_change import delta_shape


def unet(family: str) -> Any:
    """The full-size UNet on the meta device."""
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**UNETS[family])


def load_in_diffusers(family: str, path: Path) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape of the weight change and scale of each layer that diffusers loads. (There are no numbers on the meta device.)"""
    pipeline = diffusers.StableDiffusionPipeline if family == "sd1" else diffusers.StableDiffusionXLPipeline
    model = unet(family)
    options = {"weight_name": path.name, "unet_config": model.config, "return_lora_metadata": True}
    state, alphas, metadata = pipeline.lora_state_dict(str(path.parent), **options)
    pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=model, adapter_name="x", metadata=metadata, low_cpu_mem_usage=True)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A") and "x" in layer.lora_A}
    return {name: (tuple(layer.get_delta_weight("x").shape), layer.scaling["x"]) for name, layer in layers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_loads_the_unet_part(tmp_path: Path, family: str, form: str) -> None:
    sizes = {key: size for key, size in (sd15_sizes() if family == "sd1" else sdxl_sizes()).items() if key[0] == "unet"}
    if family == "sdxl":  # a third of the layers is enough
        sizes = {key: size for key, size in sizes.items() if "attentions.0" in key[1] or "attentions.2" in key[1]}
    weights = sample(sizes, family, alpha=1.0)
    write_lora(tmp_path / "x.safetensors", convert(weights, form))
    found_layers = load_in_diffusers(family, tmp_path / "x.safetensors")
    scale = 0.5 if form == "kohya" else 1.0  # formats without alpha have it folded into the weights
    assert found_layers == {module.name: (delta_shape(module.algorithm, module.tensors), scale) for module in weights}
    name = {"sd1": "SD 1.5", "sdxl": "SDXL"}[family]
    found = f"no leftover key, all {len(found_layers)} UNet layers with their shapes and scale"
    record(
        "diffusers", diffusers.__version__, f"{name}, {form} format, UNet", found, "lora_state_dict and load_lora_into_unet, full-size UNet"
    )


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_diffusers_loads_a_whole_lora_into_a_pipeline(tmp_path: Path, form: str) -> None:
    """``load_lora_weights`` on a small pipeline with UNet and text encoder; fusing adds the expected change."""
    torch.manual_seed(0)
    small = {**UNETS["sd1"], "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 4, "sample_size": 8}
    model = diffusers.UNet2DConditionModel(**small)
    config = transformers.CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    text = transformers.CLIPTextModel(config)
    sizes = {
        ("unet", name): (layer.weight.shape[0], layer.weight.shape[1], layer.weight.ndim == 4)
        for name, layer in model.named_modules()
        if ".attentions." in name and isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    } | {key: (out, into, conv) for key, (out, into, conv) in clip_layers("te1", 32, 2).items()}
    sizes |= {key: (64 if "fc1" in key[1] else 32, 64 if "fc2" in key[1] else 32, False) for key in sizes if ".mlp." in key[1]}
    weights = sample(sizes, "sd1", alpha=1.0)
    write_lora(tmp_path / "x.safetensors", convert(weights, form))
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=text, tokenizer=None, unet=model, scheduler=diffusers.DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    name, layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.layers.1.mlp.fc1"
    short = not hasattr(text, "text_model")
    layer = layer if short else f"text_model.{layer}"
    before = model.get_submodule(name).weight.detach().clone(), text.get_submodule(layer).weight.detach().clone()
    pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    modules = {(module.component, module.name): module for module in weights}
    for old, new, module in (
        (before[0], model.get_submodule(name).weight, modules["unet", name]),
        (before[1], text.get_submodule(layer).weight, modules["te1", "text_model.encoder.layers.1.mlp.fc1"]),
    ):
        assert torch.allclose(new - old, module.delta(), atol=2e-3), (
            f"{module.component} scale {float((new - old).norm() / module.delta().norm())}"
        )
    found = f"{len(sizes)} layers of UNet and text encoder, fused change equals ours"
    record(
        "diffusers",
        diffusers.__version__,
        f"SD 1.x, {form} format, whole pipeline",
        found,
        "load_lora_weights and fuse_lora, small pipeline",
    )


@pytest.mark.slow
def test_diffusers_loads_dora_in_peft_form(tmp_path: Path) -> None:
    sizes = {key: size for key, size in sd15_sizes().items() if "mid_block" in key[1] and "proj_" not in key[1].split(".")[-1]}
    weights = sample(sizes, "sd1", "dora", alpha=2.0)
    write_lora(tmp_path / "x.safetensors", convert(weights, "peft"))
    model = unet("sd1")
    state, alphas, metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), weight_name="x.safetensors", return_lora_metadata=True
    )
    for name in {module.name for module in weights}:  # DoRA reads the base weights
        layer = model.get_submodule(name)
        layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape), requires_grad=False)
    diffusers.StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=model, adapter_name="x", metadata=metadata)
    for module in weights:
        layer = model.get_submodule(module.name)
        magnitude = layer.lora_magnitude_vector["x"].weight.detach().flatten().float()
        assert torch.equal(magnitude, module.tensors["dora_scale"].flatten().float())
        assert torch.allclose(layer.get_delta_weight("x"), module.delta(), atol=2e-3)
    record(
        "diffusers",
        diffusers.__version__,
        "SD 1.5, peft format, DoRA",
        f"{len(weights.modules)} layers with their magnitudes",
        "load_lora_into_unet",
    )
