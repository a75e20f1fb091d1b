"""ComfyUI, diffusers and kohya's trainer load LoRA files for Anima with their own code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tools.comfyui import ComfyUI
from trainer.lorafile import LoraModule, LoraWeights, convert, write_lora
from trainer.lorafile.writing.save import write_tensors

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..anima_models import anima_parts, linear_layers
from ..anima_samples import anima_sizes, sample
from .compatibility import record
from .in_comfyui import NARROW, comfy_key, load_in_comfyui

_QWEN_LAYERS = 28


def full_sizes() -> dict[tuple[str, str], tuple[int, int]]:
    """All 707 layers that a LoRA for Anima can have: kohya's, modulation and last layer, adapter and Qwen3."""
    beyond = {name: size for name, size in linear_layers(anima_parts(28)["unet"]).items() if ".norm" in name or name.startswith("norm_out")}
    beyond["proj_out"] = linear_layers(anima_parts(28)["unet"])["proj_out"]
    sizes = anima_sizes(28) | {("unet", name): size for name, size in beyond.items()}
    first = {key: size for key, size in sizes.items() if key[0] == "te1" and key[1].startswith("layers.0.")}
    for index in range(_QWEN_LAYERS):
        sizes |= {("te1", name.replace("layers.0.", f"layers.{index}.", 1)): size for (_, name), size in first.items()}
    return sizes


def one_of_each_kind(weights: LoraWeights) -> list[LoraModule]:
    """The layers whose numbers are compared."""
    kinds: dict[tuple[str, str], LoraModule] = {}
    for module in weights:
        kinds.setdefault((module.component, re.sub(r"\.\d+\.", ".", module.name)), module)
    return list(kinds.values())


def knows_anima(comfyui: ComfyUI) -> bool:
    return (comfyui.path / "comfy" / "ldm" / "anima").is_dir()


@pytest.mark.comfyui
def test_comfyui_uses_every_key_and_computes_the_same_changes(comfyui: ComfyUI, tmp_path: Path, long_form: bool) -> None:
    if not knows_anima(comfyui):
        pytest.skip("this ComfyUI does not know Anima")
    every, few = full_sizes(), anima_sizes(1)
    cases = [(algorithm, form) for form in ("kohya", "comfyui") for algorithm in ("lora", "loha", "lokr", "dora")]
    jobs, files = [], []
    for algorithm, form in cases:
        full = long_form or (algorithm, form) == cases[0]
        sizes = every if algorithm == "lora" else few
        if not full:
            sizes = {key: (out // NARROW, into // NARROW) for key, (out, into) in sizes.items()}
        weights = sample(sizes, algorithm)
        layers = one_of_each_kind(weights)
        path = tmp_path / f"{algorithm}-{form}.safetensors"
        converted = convert(weights, form)
        if full:
            write_lora(path, converted)
        else:
            write_tensors(path, converted.tensors, converted.metadata)  # it would be refused as one of another model
        keys = [comfy_key("anima", module.component, module.name) for module in layers]
        shapes = {} if full else {key: sizes[module.component, module.name] for key, module in zip(keys, layers, strict=True)}
        base = 1.0 if algorithm == "dora" else 0.0
        written = str(tmp_path / f"{path.stem}.out.safetensors")
        jobs.append({"lora": str(path), "result": written, "layers": keys, "base": base, "shapes": shapes})
        files.append((algorithm, form, layers, {comfy_key("anima", module.component, module.name) for module in weights}))
    results = load_in_comfyui(comfyui, tmp_path, "anima", jobs)
    assert len(every) == 280 + 168 + 3 + 60 + 196
    for (algorithm, form, layers, expected), job, result in zip(files, jobs, results, strict=True):
        assert result["left"] == [], (algorithm, form, result["left"][:5])
        assert set(result["patched"]) == expected
        changes = load_file(str(job["result"]))
        for module in layers:
            change = changes[comfy_key("anima", module.component, module.name)]
            ours = module.delta().reshape(change.shape)
            if algorithm == "dora":
                ones = torch.ones_like(change)  # ComfyUI divides an output-axis scale by the norm of the original weight
                ours = (ones + ours) * module.tensors["dora_scale"].float() / ones.norm(dim=1, keepdim=True)
            assert torch.allclose(change, ours, rtol=1e-3, atol=1e-3), (algorithm, form, module.name)
        found = f"all {result['keys']} keys used, {len(expected)} layers patched, changes equal to 1e-3"
        how = "its loader on full-size models with 28 blocks, numbers of one layer of each kind"
        how += ", narrowed" if job["shapes"] else ""
        record("ComfyUI", comfyui.version, f"Anima, {form} format, {algorithm}", found, how)


@pytest.mark.long
@pytest.mark.comfyui
def test_comfyui_uses_no_key_with_diffusers_names(comfyui: ComfyUI, tmp_path: Path) -> None:
    """This test notices when that changes."""
    if not knows_anima(comfyui):
        pytest.skip("this ComfyUI does not know Anima")
    weights = sample(anima_sizes(2, components=("unet",)))
    write_lora(tmp_path / "a.safetensors", convert(weights, "diffusers"))
    jobs = [{"lora": str(tmp_path / "a.safetensors"), "result": str(tmp_path / "out.safetensors"), "layers": []}]
    (result,) = load_in_comfyui(comfyui, tmp_path, "anima", jobs)
    assert result["patched"] == [], "ComfyUI now reads this format: update the documentation and readers.py"
    finding = f"0 of {result['keys']} keys used: export kohya or comfyui"
    record("ComfyUI", comfyui.version, "Anima, diffusers format, lora", finding, "its loader")


class _Pipeline:
    """What diffusers' loader needs of a pipeline: a denoiser with two blocks and the adapter, small but with Anima's names."""

    def __init__(self) -> None:
        from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
        from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

        self.transformer = CosmosTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, text_embed_dim=24,
            adaln_lora_dim=8, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None, concat_padding_mask=True,
        )  # fmt: skip
        self.text_conditioner = AnimaTextConditioner(
            target_vocab_size=10, source_dim=24, target_dim=24, model_dim=24, num_layers=1, num_attention_heads=2
        )

    def layers(self) -> dict[tuple[str, str], torch.nn.Linear]:
        """The layers that kohya adapts, by component and name."""
        parts = {"unet": self.transformer, "adapter": self.text_conditioner}
        return {
            (component, name): part
            for component, model in parts.items()
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and "blocks." in name and ".norm" not in name
        }


def diffusers_loads(path: Path) -> tuple[_Pipeline, dict[tuple[str, str], torch.Tensor]]:
    """A pipeline into which diffusers loaded ``path``, and the weights before."""
    from diffusers.loaders.lora_pipeline import AnimaLoraLoaderMixin

    pipeline = type("Pipeline", (_Pipeline, AnimaLoraLoaderMixin), {"components": {}, "hf_device_map": None})()
    before = {key: layer.weight.detach().clone() for key, layer in pipeline.layers().items()}
    pipeline.load_lora_weights(str(path))
    return pipeline, before


def small_weights() -> LoraWeights:
    sizes = {key: (layer.out_features, layer.in_features) for key, layer in _Pipeline().layers().items()}
    weights = sample(sizes)
    return LoraWeights(weights.modules, "anima", "kohya", {})


@pytest.mark.parametrize("form", ["comfyui", "diffusers", "peft"])
def test_diffusers_applies_every_layer(tmp_path: Path, form: str) -> None:
    import diffusers

    weights = small_weights()
    converted = convert(weights, form)
    write_tensors(tmp_path / "a.safetensors", converted.tensors, converted.metadata)  # the small width would be refused as another model
    pipeline, before = diffusers_loads(tmp_path / "a.safetensors")
    pipeline.transformer.fuse_lora()
    pipeline.text_conditioner.fuse_lora()
    after: dict[tuple[str, str], torch.Tensor] = {}
    for component, model in (("unet", pipeline.transformer), ("adapter", pipeline.text_conditioner)):
        for name, part in model.named_modules():
            if name.endswith(".base_layer"):
                after[component, name.removesuffix(".base_layer")] = part.weight.detach()
    assert set(after) == set(before)
    for module in weights:
        key = module.component, module.name
        assert torch.allclose(after[key] - before[key], module.delta(), atol=1e-3), key
    finding = f"all {len(before)} layers of transformer and adapter, fused change equals ours to 1e-3"
    record("diffusers", diffusers.__version__, f"Anima, {form} format, lora", finding, "load_lora_weights and fuse_lora, small models")


def test_diffusers_loads_nothing_from_kohyas_names_without_an_error(tmp_path: Path) -> None:
    """This test notices when that changes."""
    import diffusers

    write_lora(tmp_path / "a.safetensors", convert(small_weights(), "kohya"))
    pipeline, _ = diffusers_loads(tmp_path / "a.safetensors")
    adapted = [name for model in (pipeline.transformer, pipeline.text_conditioner) for name, _ in model.named_modules() if "lora" in name]
    assert adapted == [], "diffusers now reads this format: update the documentation and readers.py"
    finding = "0 layers, without an error or a warning: export as comfyui"
    record("diffusers", diffusers.__version__, "Anima, kohya format, lora", finding, "load_lora_weights, small models")


_KOHYA_PROGRAM = """
import json, sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel, Qwen3Config, Qwen3Model, T5EncoderModel
for name in ("torchvision", "cv2"):  # for images, which are not needed here
    sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
sys.path.insert(0, sys.argv[1])
from library import anima_models
from networks import lora_anima
from safetensors.torch import load_file
with torch.device("meta"):
    model = anima_models.Anima(
        max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
        concat_padding_mask=True, model_channels=2048, num_blocks=28, num_heads=16, crossattn_emb_channels=1024, use_adaln_lora=True,
        adaln_lora_dim=256, use_llm_adapter=True, pos_emb_cls="rope3d",
    )
    qwen = Qwen3Model(Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    ))
    weights = load_file(sys.argv[2])
    network, _ = lora_anima.create_network_from_weights(1.0, sys.argv[2], None, [qwen], model, weights)
loras = network.unet_loras + network.text_encoder_loras
modules = {lora.lora_name: [list(lora.lora_down.weight.shape), list(lora.lora_up.weight.shape)] for lora in loras}
print(json.dumps(modules))
"""


@pytest.mark.skipif(not os.environ.get("KOHYA_PATH"), reason="needs KOHYA_PATH, a folder with kohya's sd-scripts")
def test_kohyas_trainer_finds_every_layer(tmp_path: Path) -> None:
    import json

    weights = sample(full_sizes())
    write_lora(tmp_path / "a.safetensors", convert(weights, "kohya"))
    command = [sys.executable, "-c", _KOHYA_PROGRAM, os.environ["KOHYA_PATH"], str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    modules: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(modules) == {key.partition(".")[0] for key in tensors}
    for name, (down, up) in modules.items():
        assert (down, up) == (list(tensors[f"{name}.lora_down.weight"].shape), list(tensors[f"{name}.lora_up.weight"].shape))
    finding = f"all {len(modules)} layers of transformer, adapter and Qwen3 with their shapes"
    record("kohya's sd-scripts", "48d368f", "Anima, kohya format, lora", finding, "networks.lora_anima on its own full-size model")
