"""Run by ComfyUI's own interpreter: the UNet's output for given latents, timestep and prompt, without and with a LoRA.

python unet_in_comfyui.py COMFYUI PACK CHECKPOINT LORA INPUTS.npz OUTPUTS.npz
"""

# ruff: noqa: E402 (ComfyUI wants its options set before its modules are imported, and those in this order)
from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

comfyui, pack, checkpoint, lora, inputs, outputs = sys.argv[1:7]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options

comfy.options.enable_args_parsing()

importlib.import_module("utils.install_util")  # before nodes, which puts another package named utils first
importlib.import_module("server")
nodes: Any = importlib.import_module("nodes")  # ComfyUI's, not ours

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import numpy as np
import torch

asyncio.run(nodes.load_custom_node(pack))


def load() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE from core's loader if it knows the file, else from ours."""
    shape = comfy.utils.load_torch_file(checkpoint)["model.diffusion_model.input_blocks.0.0.weight"].shape
    if shape[0] == 320:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint)
    else:
        ours = sys.modules[nodes.NODE_CLASS_MAPPINGS["AnimeLoRA_LoadDemoBase"].__module__]
        model, clip, vae = ours.load_small_checkpoint(Path(checkpoint))
    return model, clip, vae


def predict(model: Any, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> np.ndarray[Any, Any]:
    """One forward pass of the UNet, patched as for sampling."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    noise: np.ndarray[Any, Any] = model.model.diffusion_model(latents, timestep, context=context).float().numpy()
    return noise


with torch.inference_mode():
    given = np.load(inputs)
    model, clip, vae = load()
    latents = torch.from_numpy(given["latents"])
    picture = vae.decode(latents)
    encoded = vae.encode(picture)
    context = clip.encode_from_tokens(clip.tokenize(str(given["prompt"])))
    arguments = (latents, torch.from_numpy(given["timestep"]), context.float())
    base = predict(model, *arguments)
    patched, _ = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(lora, safe_load=True), 1.0, 1.0)
    styled = predict(patched, *arguments)
    np.savez(
        outputs,
        context=context.float().numpy(),
        base=base,
        styled=styled,
        picture=picture.float().numpy(),
        encoded=encoded.float().numpy(),
    )
