"""Apply LoRAs to a small checkpoint with Load LoRA and with core's loader, in ComfyUI's interpreter, and write the weights.

python patch_in_comfyui.py COMFYUI PACK BASE_DIRECTORY JOBS.json

JOBS is {"checkpoint": path, "loras": [{"lora": path, "result": path, "strength": 1.0, "layers": [key, ...]}, ...]}. For each layer,
``result`` gets ``base <key>``, ``ours <key>`` and ``core <key>``. ``error`` in the printed JSON is Load LoRA's reason for refusing.
"""

# ruff: noqa: E402 (ComfyUI's options must be set before its modules are imported, in this order)
from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any

comfyui, pack, base, jobs_path = sys.argv[1:5]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu", "--base-directory", base]

import comfy.options

comfy.options.enable_args_parsing()

importlib.import_module("utils.install_util")
importlib.import_module("server")
nodes: Any = importlib.import_module("nodes")
asyncio.run(nodes.load_custom_node(pack))
module_name = next(name for name in sys.modules if name.endswith(".nodes.shared.loras.apply_lora"))
apply_lora: Any = sys.modules[module_name]
small_checkpoint: Any = importlib.import_module(module_name.replace("loras.apply_lora", "comfyui.small_checkpoint"))

import comfy.lora
import comfy.sd
import comfy.utils
import torch
from safetensors.torch import save_file


def patched(patcher: Any, key: str) -> torch.Tensor:
    """A weight in fp32 with all patches applied."""
    weight = comfy.utils.get_attr(patcher.model, key).detach().float().clone()
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key).contiguous()  # type: ignore[no-any-return]


def main() -> None:
    jobs = json.loads(Path(jobs_path).read_text(encoding="utf-8"))
    model, clip, _ = small_checkpoint.load_small_checkpoint(Path(jobs["checkpoint"]))
    reports: list[dict[str, Any]] = []
    for job in jobs["loras"]:
        path, strength = Path(job["lora"]), job.get("strength", 1.0)
        try:
            ours = apply_lora.apply_lora(model, clip, path, strength, strength)
        except Exception as error:
            reports.append({"error": str(error)})
            continue
        tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
        core = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength)
        results = {}
        for key in job["layers"]:
            text = not key.startswith("diffusion_model.")
            results[f"base {key}"] = comfy.utils.get_attr((clip.patcher if text else model).model, key).detach().float().contiguous()
            results[f"ours {key}"] = patched(ours.clip.patcher if text else ours.model, key)
            results[f"core {key}"] = patched(core[1].patcher if text else core[0], key)
        save_file({key: tensor.clone() for key, tensor in results.items()}, job["result"])
        reports.append({"used": ours.used, "total": ours.total, "unknown": list(ours.unknown)})
    apart = []
    for patcher in (model, clip.patcher):
        try:  # as core's Train LoRA does
            apart.append(patcher.clone(force_deepcopy=True).model is not patcher.model)
        except TypeError:  # ComfyUI 0.3.64 has no such copies
            apart.append(True)
    print("RESULT " + json.dumps({"loras": reports, "apart": apart}))


main()
