"""ComfyUI's own code loads every export, uses all keys and computes the same weight changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools.comfyui import ComfyUI
from tests.tools.parameters import mark_long
from tests.unit.lorafile.other_programs.compatibility import record
from tests.unit.lorafile.other_programs.in_comfyui import NARROW, comfy_key, load_in_comfyui
from tests.unit.lorafile.other_programs.samples import Sizes, sample, sd15_sizes, sdxl_sizes
from trainer.lorafile import LoraModule, LoraWeights, convert, write_lora
from trainer.lorafile.writing.save import write_tensors


def compared(weights: LoraWeights) -> list[LoraModule]:
    """The layers whose numbers are compared: one of each kind in each component."""
    kinds: dict[tuple[str, str], LoraModule] = {}
    for module in weights:
        kinds.setdefault((module.component, re.sub(r"\.\d+", "", module.name)), module)
    return list(kinds.values())


def shape(size: tuple[int, int, bool]) -> tuple[int, ...]:
    """The shape of a layer's weight, of a 1 x 1 convolution with its two more axes."""
    out, into, conv = size
    return (out, into, 1, 1) if conv else (out, into)


@pytest.mark.comfyui
@pytest.mark.parametrize("family", mark_long(["sd1", "sdxl"], "sdxl"))
def test_comfyui_uses_every_key_and_computes_same_changes(comfyui: ComfyUI, tmp_path: Path, family: str, long_form: bool) -> None:
    sizes: Sizes = sd15_sizes() if family == "sd1" else sdxl_sizes()
    cases = [("lora", "kohya"), ("lora", "comfyui"), ("loha", "kohya"), ("lokr", "kohya")]
    if family == "sd1":
        cases += [("dora", "kohya"), ("loha", "comfyui")]
    else:
        cases = cases[:2]
    narrow = {key: (out // NARROW, into // NARROW, conv) for key, (out, into, conv) in sizes.items()}
    jobs, files = [], []
    for algorithm, form in cases:
        full = long_form or (algorithm, form) == cases[0]
        weights = sample(sizes if full else narrow, family, algorithm)
        layers = compared(weights)
        path = tmp_path / f"{algorithm}-{form}.safetensors"
        converted = convert(weights, form)
        if full:
            write_lora(path, converted)
        else:
            write_tensors(path, converted.tensors, converted.metadata)  # it would be refused as one of another model
        base = 1.0 if algorithm == "dora" else 0.0
        keys = [comfy_key(family, module.component, module.name) for module in layers]
        shapes = {} if full else {key: shape(narrow[module.component, module.name]) for key, module in zip(keys, layers, strict=True)}
        written = str(tmp_path / f"{path.stem}.out.safetensors")
        jobs.append({"lora": str(path), "result": written, "layers": keys, "base": base, "shapes": shapes})
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
        how = "its loader on full-size models, numbers of one layer of each kind" + (", narrowed" if job["shapes"] else "")
        record("ComfyUI", comfyui.version, f"{name}, {form} format, {algorithm}", found, how)


@pytest.mark.long
@pytest.mark.comfyui
def test_comfyui_reads_only_old_diffusers_names(comfyui: ComfyUI, tmp_path: Path) -> None:
    """ComfyUI maps only diffusers' old attention names. This test notices when that changes."""
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
        assert used < result["keys"], "ComfyUI now reads this format: update the documentation"
