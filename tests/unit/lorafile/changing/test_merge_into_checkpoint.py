"""Merging into a checkpoint changes the adapted weights by the change of the LoRA, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.factors import loha, lora_file, weights_of
from trainer.core.errors import UserError
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
    merge_into_checkpoint,
    read_lora,
)  # fmt: skip
from trainer.lorafile.algorithms.shape_checks import shape_problem
from trainer.lorafile.container import read_safetensors_header

UNET_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def small_checkpoint(path: Path, dtype: torch.dtype, width: int = 768) -> dict[str, torch.Tensor]:
    block = "model.diffusion_model.input_blocks.1.1"
    tensors = {f"{block}.proj_in.weight": torch.randn(320, 320, 1, 1), "other": torch.randn(7)}
    tensors[UNET_KEY] = torch.randn(320, width)
    tensors["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"] = torch.randn(3072, 768)
    tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"] = torch.randn(24, 16, 3, 3)
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    save_file(tensors, path, {"modelspec.title": "Base"})
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_merge_into_checkpoint_changes_only_adapted_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = small_checkpoint(tmp_path / "base.safetensors", dtype)
    prefix = "down_blocks.0.attentions.0"
    conv = {"lora_up.weight": torch.randn(320, 2, 1, 1), "lora_down.weight": torch.randn(2, 320, 1, 1)}
    dora = {"lora_up.weight": torch.randn(320, 2), "lora_down.weight": torch.randn(2, 768), "dora_scale": torch.rand(320, 1)}
    text = {"lora_up.weight": torch.randn(3072, 2), "lora_down.weight": torch.randn(2, 768)}
    loha = {
        "hada_w1_a": torch.randn(24, 2),
        "hada_w1_b": torch.randn(2, 144),
        "hada_w2_a": torch.randn(24, 2),
        "hada_w2_b": torch.randn(2, 144),
    }
    weights = weights_of(
        LoraModule("unet", f"{prefix}.proj_in", "lora", conv, torch.tensor(1.0)),
        LoraModule("unet", f"{prefix}.transformer_blocks.0.attn2.to_k", "lora", dora, torch.tensor(2.0)),
        LoraModule("te1", "text_model.encoder.layers.0.mlp.fc1", "lora", text),
        LoraModule("unet", "down_blocks.0.resnets.0.conv1", "loha", loha),
    )
    assert merge_into_checkpoint(tmp_path / "base.safetensors", [(weights, 0.7)], tmp_path / "out.safetensors") == 4
    after = load_file(tmp_path / "out.safetensors")
    assert torch.equal(after["other"], before["other"])

    def near(key: str, expected: torch.Tensor) -> bool:
        return (after[key].dtype == dtype and torch.equal(after[key], expected.to(dtype))) or torch.allclose(
            after[key].float(), expected, rtol=2e-3, atol=2e-3
        )

    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    assert near(
        key, before[key].float() + 0.7 * 0.5 * (conv["lora_up.weight"].flatten(1) @ conv["lora_down.weight"].flatten(1))[..., None, None]
    )
    base = before[UNET_KEY].float()
    total = base + dora["lora_up.weight"] @ dora["lora_down.weight"]
    decomposed = total / total.norm(dim=1, keepdim=True) * dora["dora_scale"]
    assert near(UNET_KEY, base + 0.7 * (decomposed - base))
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    product = (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"])
    assert near(key, before[key].float() + 0.7 * product.reshape(24, 16, 3, 3))
    assert read_safetensors_header(tmp_path / "out.safetensors").metadata["modelspec.merged_from"] == "Base, unnamed LoRA"


def test_merge_into_checkpoint_refuses_misshapen_magnitudes(tmp_path: Path) -> None:
    """LoHa of a convolution is a matrix (out, in * 9), which alone does not determine the number of inputs."""
    torch.manual_seed(0)
    before = small_checkpoint(tmp_path / "base.safetensors", torch.float32)
    factors, name = loha(24, 144, 2), "down_blocks.0.resnets.0.conv1"
    for inputs, fits in ((16, True), (48, False)):
        tensors = {**factors, "dora_scale": torch.rand(1, inputs, 1, 1) + 0.5}
        assert shape_problem("loha", tensors) == ""
        parts = [(weights_of(LoraModule("unet", name, "loha", tensors)), 1.0)]
        if not fits:
            with pytest.raises(UserError, match=r"dora_scale \[1, 48, 1, 1\], which does not fit"):
                merge_into_checkpoint(tmp_path / "base.safetensors", parts, tmp_path / "out.safetensors")
            continue
        merge_into_checkpoint(tmp_path / "base.safetensors", parts, tmp_path / "out.safetensors")
        key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
        change = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])
        total = before[key] + change.reshape(24, 16, 3, 3)
        expected = total / total.square().sum((0, 2, 3), keepdim=True).sqrt() * tensors["dora_scale"]
        assert torch.allclose(load_file(tmp_path / "out.safetensors")[key], expected, rtol=1e-4, atol=1e-5)


def test_merge_into_checkpoint_changes_thirds_of_openclip_matrix(tmp_path: Path) -> None:
    joint = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    base = torch.randn(12, 4)
    save_file({joint: base, UNET_KEY: torch.zeros(640, 2048)}, tmp_path / "base.safetensors")
    parts = {f"{n}_proj": {"lora_up.weight": torch.randn(4, 1), "lora_down.weight": torch.randn(1, 4)} for n in "qkv"}
    modules = tuple(LoraModule("te2", f"text_model.encoder.layers.0.self_attn.{name}", "lora", t) for name, t in parts.items())
    merge_into_checkpoint(tmp_path / "base.safetensors", [(LoraWeights(modules, "sdxl", "kohya"), 1.0)], tmp_path / "out.safetensors")
    expected = base + torch.cat([t["lora_up.weight"] @ t["lora_down.weight"] for t in parts.values()])
    assert torch.allclose(load_file(tmp_path / "out.safetensors")[joint], expected)


def test_merge_into_checkpoint_refuses_other_models(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "sd2.safetensors", torch.float16, width=1024)
    small_checkpoint(tmp_path / "sd1.safetensors", torch.float16)
    weights = read_lora(lora_file(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"Stable Diffusion 1.x.*Stable Diffusion 2.x"):
        merge_into_checkpoint(tmp_path / "sd2.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="lacks"):
        merge_into_checkpoint(tmp_path / "sd1.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="overwrite the original"):
        merge_into_checkpoint(tmp_path / "sd1.safetensors", [(weights, 1.0)], tmp_path / "sd1.safetensors")
    with pytest.raises(UserError, match="not a Stable Diffusion, Anima or Lumina 2 checkpoint"):
        merge_into_checkpoint(tmp_path / "a.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
