"""ComfyUI's own code loads every export: all keys used, and the weight changes are ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools.comfyui import ComfyUI
from trainer.lorafile import MODELS, LoraModule, LoraWeights, convert, diffusers_to_ldm, write_lora

from .compat import record
from .samples import Sizes, sample, sd15_sizes, sdxl_sizes

_PROGRAM = Path(__file__).parent / "programs" / "load_in_comfyui.py"
_CLIP = {("sd1", "te1"): "clip_l", ("sdxl", "te1"): "clip_l", ("sdxl", "te2"): "clip_g"}


def comfy_key(family: str, component: str, name: str) -> str:
    """The layer's key in ComfyUI's models."""
    if component == "unet":
        return f"diffusion_model.{diffusers_to_ldm(name, MODELS[family].layout)}.weight"
    return f"{_CLIP[family, component]}.transformer.{name}.weight"


def compared(weights: LoraWeights) -> list[LoraModule]:
    """Layers whose numbers are compared: one of each kind of layer in each component."""
    kinds: dict[tuple[str, str], LoraModule] = {}
    for module in weights:
        kinds.setdefault((module.component, re.sub(r"\.\d+", "", module.name)), module)
    return list(kinds.values())


def load_in_comfyui(comfyui: ComfyUI, folder: Path, family: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(comfyui.path), "PYTHONIOENCODING": "utf-8"}
    command = [str(comfyui.python), str(_PROGRAM), family, str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


@pytest.mark.comfyui
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_comfyui_uses_every_key_and_computes_our_changes(comfyui: ComfyUI, tmp_path: Path, family: str) -> None:
    sizes: Sizes = sd15_sizes() if family == "sd1" else sdxl_sizes()
    cases = [("lora", "kohya"), ("lora", "comfyui"), ("loha", "kohya"), ("lokr", "kohya")]
    if family == "sd1":
        cases += [("dora", "kohya"), ("loha", "comfyui")]
    else:
        cases = cases[:2]
    jobs, files = [], []
    for algorithm, form in cases:
        weights = sample(sizes, family, algorithm)
        layers = compared(weights)
        path = tmp_path / f"{algorithm}-{form}.safetensors"
        write_lora(path, convert(weights, form))
        base = 1.0 if algorithm == "dora" else 0.0
        keys = [comfy_key(family, module.component, module.name) for module in layers]
        jobs.append({"lora": str(path), "result": str(tmp_path / f"{path.stem}.out.safetensors"), "layers": keys, "base": base})
        files.append((algorithm, form, layers))
    results = load_in_comfyui(comfyui, tmp_path, family, jobs)
    expected = {comfy_key(family, component, name) for component, name in sizes}
    for (algorithm, form, layers), job, result in zip(files, jobs, results, strict=True):
        assert result["left"] == [], (algorithm, form, result["left"][:5])
        assert set(result["patched"]) == expected
        changes = load_file(str(job["result"]))
        for module in layers:
            change = changes[comfy_key(family, module.component, module.name)]
            ours = module.delta().reshape(change.shape)
            if algorithm == "dora":
                ones = torch.ones_like(change)
                # ComfyUI divides an output-axis scale by the norm of the original weight
                norm = ones.flatten(1).norm(dim=1).reshape(-1, *[1] * (ones.ndim - 1))
                ours = (ones + ours) * module.tensors["dora_scale"].float().reshape(norm.shape) / norm
            assert torch.allclose(change, ours, rtol=1e-4, atol=1e-4), (algorithm, form, module.name)
        name = {"sd1": "SD 1.5", "sdxl": "SDXL"}[family]
        found = f"all {result['keys']} keys used, {len(expected)} layers patched, changes equal to 1e-4"
        how = "its loader on full-size models, numbers of one layer of each kind"
        record("ComfyUI", comfyui.version, f"{name}, {form} format, {algorithm}", found, how)


@pytest.mark.comfyui
def test_what_comfyui_reads_of_the_diffusers_formats(comfyui: ComfyUI, tmp_path: Path) -> None:
    """ComfyUI maps diffusers' old attention names only. The page says so; this test notices when it changes."""
    weights = sample({key: size for key, size in sd15_sizes().items() if ".attn" in key[1]}, "sd1")
    jobs = []
    for form in ("diffusers", "peft"):
        write_lora(tmp_path / f"{form}.safetensors", convert(weights, form))
        jobs.append({"lora": str(tmp_path / f"{form}.safetensors"), "result": str(tmp_path / "out.safetensors"), "layers": []})
    old = {}
    for module in weights:
        parent, layer = (module.name[: -len(".to_out.0")], "to_out") if module.name.endswith("to_out.0") else module.name.rsplit(".", 1)
        for direction in ("up", "down"):
            old[f"unet.{parent}.processor.{layer}_lora.{direction}.weight"] = module.tensors[f"lora_{direction}.weight"]
    save_file(old, tmp_path / "old.safetensors")
    jobs.append({"lora": str(tmp_path / "old.safetensors"), "result": str(tmp_path / "out.safetensors"), "layers": []})
    diffusers, peft, attention = load_in_comfyui(comfyui, tmp_path, "sd1", jobs)
    assert (len(attention["patched"]), attention["left"]) == (128, [])
    for form, result in (("diffusers", diffusers), ("peft", peft)):
        used = result["keys"] - len(result["left"])
        finding = f"{used} of {result['keys']} keys used: export kohya or comfyui"
        record("ComfyUI", comfyui.version, f"SD 1.5, {form} format, lora", finding, "its loader")
        assert used < result["keys"], "ComfyUI reads this format now: say so in the documentation"
