"""ComfyUI, diffusers and kohya's trainer load LoRA files for Lumina 2 with their own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tools.comfyui import ComfyUI
from trainer.lorafile import convert, write_lora

from ..lumina2_samples import lumina2_sizes, one_block, sample
from .compatibility import record
from .in_comfyui import comfy_key, load_in_comfyui


@pytest.mark.comfyui
def test_comfyui_uses_every_key_and_computes_the_same_changes(comfyui: ComfyUI, tmp_path: Path, long_form: bool) -> None:
    every, few = lumina2_sizes(), one_block()
    more = [(algorithm, form) for form in ("kohya", "comfyui") for algorithm in ("lora", "lokr", "dora")][1:]
    cases = [("lora", "kohya"), *(more if long_form else [])]
    jobs, samples = [], []
    for algorithm, form in cases:
        weights = sample(every if (algorithm, form) == cases[0] else few, algorithm)
        path = tmp_path / f"{algorithm}-{form}.safetensors"
        write_lora(path, convert(weights, form))
        compared = [module for module in weights if module.name in few and (long_form or "adaLN" in module.name)]
        keys = [comfy_key("lumina2", "unet", module.name) for module in compared]
        base = 1.0 if algorithm == "dora" else 0.0
        jobs.append({"lora": str(path), "result": str(tmp_path / f"{path.stem}.out.safetensors"), "layers": keys, "base": base})
        samples.append((weights, compared))
    results = load_in_comfyui(comfyui, tmp_path, "lumina2", jobs)
    for (algorithm, form), (weights, compared), job, result in zip(cases, samples, jobs, results, strict=True):
        assert result["left"] == [], (algorithm, form, result["left"][:5])
        assert set(result["patched"]) == {comfy_key("lumina2", "unet", module.name) for module in weights}
        changes = load_file(str(job["result"]))
        for module in compared:
            change = changes[comfy_key("lumina2", "unet", module.name)]
            ours = module.delta()
            if algorithm == "dora":
                ones = torch.ones_like(change)  # ComfyUI divides an output-axis scale by the norm of the original weight
                ours = (ones + ours) * module.tensors["dora_scale"].float() / ones.norm(dim=1, keepdim=True)
            assert torch.allclose(change, ours, rtol=1e-3, atol=1e-3), (algorithm, form, module.name)
        found = f"all {result['keys']} keys used, {len(weights.modules)} layers patched, changes equal to 1e-3"
        record("ComfyUI", comfyui.version, f"Lumina 2, {form} format, {algorithm}", found, "its loader on the full-size model")


@pytest.mark.long
@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_diffusers_loads_nothing(tmp_path: Path, form: str) -> None:
    """This test notices when that changes."""
    import diffusers
    from diffusers.loaders.lora_pipeline import Lumina2LoraLoaderMixin
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

    write_lora(tmp_path / "a.safetensors", convert(sample(one_block()), form))
    transformer = Lumina2Transformer2DModel(
        hidden_size=96, num_layers=1, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, axes_dim_rope=(8, 8, 8), cap_feat_dim=64
    )
    attributes = {"components": {}, "hf_device_map": None, "transformer": transformer}
    pipeline = type("Pipeline", (Lumina2LoraLoaderMixin,), attributes)()
    try:
        pipeline.load_lora_weights(str(tmp_path / "a.safetensors"))
        finding = "0 layers, without an error"
    except (KeyError, ValueError) as error:
        finding = f"refused ({type(error).__name__})"
    adapted = [name for name, _ in transformer.named_modules() if "lora" in name]
    assert adapted == [], "diffusers now reads this format: update the documentation and readers.py"
    record("diffusers", diffusers.__version__, f"Lumina 2, {form} format, lora", finding, "load_lora_weights, a small model")


_KOHYA_PROGRAM = """
import json, sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel, T5EncoderModel
for name in ("torchvision", "cv2"):  # for images, which are not needed here
    sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
sys.path.insert(0, sys.argv[1])
from library import lumina_models
from networks import lora_lumina
from safetensors.torch import load_file
with torch.device("meta"):
    model = lumina_models.NextDiT_2B_GQA_patch2_Adaln_Refiner()
    everything = lora_lumina.create_network(1.0, 4, 1.0, None, [torch.nn.Identity()], model)
    network, _ = lora_lumina.create_network_from_weights(1.0, sys.argv[2], None, [torch.nn.Identity()], model, load_file(sys.argv[2]))
sizes = {lora.lora_name: [list(lora.lora_down.weight.shape), list(lora.lora_up.weight.shape)] for lora in network.unet_loras}
print(json.dumps([sizes, [lora.lora_name for lora in everything.unet_loras]]))
"""


@pytest.mark.skipif(not os.environ.get("KOHYA_PATH"), reason="needs KOHYA_PATH, a folder with kohya's sd-scripts")
def test_kohyas_trainer_finds_every_layer_and_adapts_the_same_ones(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", convert(sample(lumina2_sizes()), "kohya"))
    command = [sys.executable, "-c", _KOHYA_PROGRAM, os.environ["KOHYA_PATH"], str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    modules: dict[str, Any]
    modules, adapted = json.loads(done.stdout.strip().splitlines()[-1])
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(modules) == {key.partition(".")[0] for key in tensors} == set(adapted)
    for name, (down, up) in modules.items():
        assert (down, up) == (list(tensors[f"{name}.lora_down.weight"].shape), list(tensors[f"{name}.lora_up.weight"].shape))
    finding = f"all {len(modules)} layers of the transformer with their shapes, those that it adapts itself"
    record("kohya's sd-scripts", "48d368f", "Lumina 2, kohya format, lora", finding, "networks.lora_lumina on its own full-size model")
