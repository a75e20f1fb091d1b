"""Sample a small SDXL checkpoint as a rectified flow with ComfyUI's code, in ComfyUI's interpreter.

python sample_flow_in_comfyui.py COMFYUI PACK BASE_DIRECTORY JOB.json

JOB is {"checkpoint": path, "lora": path, "conditions": path, "result": path, "samples": [{"shift": 3.0, "steps": 20, "guidance": 4.0,
"seed": 1, "width": 64, "height": 64}, ...]}. ``conditions`` holds the tensors ``embeds``, ``pooled``, ``negative embeds`` and ``negative
pooled``. ``result`` gets the latents "0", "1", ... and for each shift the noise levels of ComfyUI's scheduler. Prints a JSON object with
the warnings: for the LoRA without and with ModelSamplingSD3, with and without it for one that states epsilon, and, as Anime Img2Img has
them, for a model that the LoRA was applied to, without and with ModelSamplingSD3 after it.
"""

# ruff: noqa: E402 (ComfyUI's options must be set before its modules are imported, in this order)
from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

comfyui, pack, base, job_path = sys.argv[1:5]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu", "--base-directory", base]

import comfy.options

comfy.options.enable_args_parsing()

importlib.import_module("utils.install_util")
importlib.import_module("server")
nodes: Any = importlib.import_module("nodes")
asyncio.run(nodes.load_custom_node(pack))
name = next(name for name in sys.modules if name.endswith(".nodes.shared.loras.sampling_warning"))
sampling_warning: Any = sys.modules[name]
chosen_lora: Any = sys.modules[name.replace("sampling_warning", "chosen_lora")]

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from safetensors.torch import load_file, save_file

ModelSamplingSD3: Any = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3
_UNET = "model.diffusion_model."


def load_unet(path: str) -> Any:
    """The UNet in fp32 as a MODEL. ComfyUI's own loader knows only SDXL's full size."""
    tensors = comfy.utils.load_torch_file(path, safe_load=True)
    config = comfy.supported_models.SDXL(comfy.model_detection.detect_unet_config(tensors, _UNET))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(tensors, _UNET, device=torch.device("cpu"))
    model.load_model_weights(tensors, _UNET)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def main() -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    given, lora = load_file(job["conditions"]), Path(job["lora"])
    plain = load_unet(job["checkpoint"])
    patched, _ = comfy.sd.load_lora_for_models(plain, None, comfy.utils.load_torch_file(str(lora), safe_load=True), 1.0, 0.0)
    positive = [[given["embeds"], {"pooled_output": given["pooled"]}]]
    negative = [[given["negative embeds"], {"pooled_output": given["negative pooled"]}]]
    results: dict[str, torch.Tensor] = {}
    for number, sample in enumerate(job["samples"]):
        (model,) = ModelSamplingSD3().patch(patched, sample["shift"])
        levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", sample["steps"])
        blank = torch.zeros(1, 4, sample["height"] // 8, sample["width"] // 8)
        noise = comfy.sample.prepare_noise(blank, sample["seed"])
        arguments = (sample["steps"], sample["guidance"], "euler", "simple", positive, negative, blank)
        latents = comfy.sample.sample(model, noise, *arguments, seed=sample["seed"], disable_pbar=True)
        results |= {str(number): latents.float().contiguous(), f"levels {number}": levels.contiguous()}
    save_file(results, job["result"])
    info = chosen_lora.inspect(lora)
    (flow,) = ModelSamplingSD3().patch(plain, 3.0)
    of_diffusion = dataclasses.replace(info, prediction="epsilon")
    pairs = ((info, plain), (info, flow), (of_diffusion, flow), (of_diffusion, plain))
    warnings = [sampling_warning.sampling_warning(lora.name, about, model) for about, model in pairs]
    applied = plain.clone()
    sampling_warning.remember_lora(applied, lora.name, info)
    (later,) = ModelSamplingSD3().patch(applied, 3.0)
    warnings += [" ".join(sampling_warning.applied_warnings(model)) for model in (applied, later)]
    print("RESULT " + json.dumps(warnings))


main()
