"""Export LoRA with a connected model: it rescales a DoRA's magnitudes so that core's loader gives the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import Graph, loader, node
from tests.server.loras import load_lora, lora_folder, sampled

# prefix of kohya's key: the layer's name in the checkpoint and in ComfyUI
UNET = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q",
    ),
    "lora_unet_mid_block_resnets_0_conv1": (
        "model.diffusion_model.middle_block.0.in_layers.2",
        "diffusion_model.middle_block.0.in_layers.2",
    ),
}
TEXT = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    )
}
SCALE = 2.0  # alpha / rank


def checkpoint(server: Server) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of the tiny model."""
    return load_file(server.base / "models" / "checkpoints" / TINY)


def decomposed(server: Server, name: str, layers: dict[str, tuple[str, str]]) -> dict[str, np.ndarray[Any, Any]]:
    """Write a DoRA of rank 2 into models/loras whose changes are as large as the weights; its tensors."""
    generator, tensors = np.random.default_rng(5), {}
    base = checkpoint(server)
    for prefix, (place, _) in layers.items():
        weight = base[f"{place}.weight"].astype(np.float32)
        out, into, *kernel = weight.shape
        size = float(weight.std()) / 2
        tensors[f"{prefix}.lora_up.weight"] = generator.standard_normal((out, 2, *[1] * len(kernel))).astype(np.float32)
        tensors[f"{prefix}.lora_down.weight"] = size * generator.standard_normal((2, into, *kernel)).astype(np.float32)
        tensors[f"{prefix}.alpha"] = np.array(2 * SCALE, np.float32)
        norm = np.linalg.norm(weight.reshape(out, -1), axis=1) * (1 + 0.1 * generator.random(out))
        tensors[f"{prefix}.dora_scale"] = norm.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
    path = lora_folder(server) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    return tensors


def export(name: str, form: str, *inputs: str) -> Graph:
    """Export LoRA of ``name``, with ``model``, ``clip`` or both connected."""
    texts = dict.fromkeys(("title", "author", "description", "trigger_words", "tags", "licence"), "")
    links = {each: ["base", {"model": 0, "clip": 1}[each]] for each in inputs}
    settings = {"lora_name": name, "file_name": f"for {name}", "format": form, "dtype": "as it is", "rank": 0}
    return {"base": loader(TINY, full=False), "export": node("AnimeLoRA_ExportLora", **settings, **texts, **links)}


def exported(server: Server, name: str) -> Path:
    """Where Export LoRA writes."""
    return server.base / "output" / "animelora" / "exports" / f"for {name}"


def test_exported_dora_matches_training_in_cores_loader(server: Server) -> None:
    name, layers = "decomposed.safetensors", UNET | TEXT
    tensors = decomposed(server, name, layers)
    report = server.run(export(name, "comfyui", "model", "clip"))["export"]["text"][0]
    assert "the connected model" in report
    found, base = load_file(exported(server, name)), checkpoint(server)
    with safe_open(exported(server, name), framework="numpy") as file:
        assert file.metadata()["animelora.dora_norm"] == "of the base"
    for prefix, (place, key) in layers.items():
        weight = base[f"{place}.weight"].astype(np.float64)
        weight = weight.reshape(weight.shape[0], -1)
        up, down = (tensors[f"{prefix}.lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
        changed = weight + SCALE * up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
        # core gives m* (W + D) / ||W||, and m (W + D) / ||W + D|| was trained
        wanted = tensors[f"{prefix}.dora_scale"].ravel() * np.linalg.norm(weight, axis=1) / np.linalg.norm(changed, axis=1)
        np.testing.assert_allclose(found[f"{key}.dora_scale"].ravel(), wanted, rtol=1e-5)
    (lora_folder(server) / "moved.safetensors").write_bytes(exported(server, name).read_bytes())
    pictures = [sampled(server, ["load", 0], ["load", 1], load_lora(name, strength_model=1.0, strength_clip=1.0))]
    for each in ("moved.safetensors", name):
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        core = node("LoraLoader", model=["base", 0], clip=["base", 1], lora_name=each, **strengths)
        pictures.append(sampled(server, ["load", 0], ["load", 1], {"base": loader(TINY, full=False), "load": core}))
    ours, moved, plain = (picture.astype(int) for picture in pictures)
    assert np.abs(moved - ours).max() <= 1
    assert np.abs(plain - ours).max() > 1, "core's loader gives the same image without the rescaling, so this test proves nothing"


def test_export_requires_the_changed_text_encoder(server: Server) -> None:
    decomposed(server, "of text.safetensors", TEXT)
    with pytest.raises(PromptFailed, match="Connect the text encoder to the clip input"):
        server.run(export("of text.safetensors", "comfyui", "model"))
    assert not exported(server, "of text.safetensors").exists()


def test_report_warns_that_the_format_ignores_the_model(server: Server) -> None:
    tensors = decomposed(server, "as trained.safetensors", UNET)
    report = server.run(export("as trained.safetensors", "kohya", "model"))["export"]["text"][0]
    assert "The model input was ignored" in report
    found = load_file(exported(server, "as trained.safetensors"))
    kept = {key: value for key, value in found.items() if key.endswith("dora_scale")}
    assert len(kept) == len(UNET)
    for key, value in kept.items():
        np.testing.assert_array_equal(value, tensors[key])
