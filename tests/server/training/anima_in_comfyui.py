"""Run by ComfyUI's own interpreter: Anima's models of a folder, applied to given images, latents and prompts, in fp32.

python anima_in_comfyui.py COMFYUI MODELS INPUTS.npz OUTPUTS.npz
"""

# ruff: noqa: E402 (ComfyUI wants its options set before its modules are imported)
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

comfyui, models, inputs, outputs = sys.argv[1:5]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]

import comfy.options

comfy.options.enable_args_parsing()

import comfy.model_management
import comfy.sd
import comfy.utils
import numpy as np
import torch

DENOISER = "diffusion_models/anima-base-v1.0.safetensors"
TEXT_ENCODER = "text_encoders/qwen_3_06b_base.safetensors"
VAE = "vae/qwen_image_vae.safetensors"


def typed(caption: str) -> str:
    """A caption as it is typed into ComfyUI, where brackets without a backslash mean emphasis."""
    return caption.replace("(", "\\(").replace(")", "\\)")


with torch.inference_mode():
    given = np.load(inputs)
    prompts = [str(prompt) for prompt in given["prompts"]]
    clip = comfy.sd.load_clip([str(Path(models) / TEXT_ENCODER)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
    model = comfy.sd.load_diffusion_model(str(Path(models) / DENOISER))
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    denoiser: Any = model.model.diffusion_model
    results: dict[str, Any] = {}
    contexts = []
    for number, prompt in enumerate(prompts):
        tokens = clip.tokenize(typed(prompt))
        for name, parts in tokens.items():
            results[f"{name} {number}"] = np.array([int(token[0]) for part in parts for token in part])
        encoded = clip.encode_from_tokens(tokens, return_dict=True)
        contexts.append(denoiser.preprocess_text_embeds(encoded["cond"].float(), encoded["t5xxl_ids"].unsqueeze(0)))
        results[f"context {number}"] = contexts[-1][0].float().numpy()
    context = torch.cat(contexts[:2])
    latents, timesteps = torch.from_numpy(given["latents"]), torch.from_numpy(given["timesteps"])
    results["velocity"] = denoiser(latents.unsqueeze(2), timesteps, context=context)[:, :, 0].float().numpy()
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(Path(models) / VAE)))
    format_ = model.model.latent_format
    results["encoded"] = format_.process_in(vae.encode(torch.from_numpy(given["pixels"])))[:, :, 0].float().numpy()
    results["decoded"] = vae.decode(format_.process_out(latents[:1].unsqueeze(2))).float().numpy().reshape(1, *given["pixels"].shape[1:])
    results["dtypes"] = np.array([str(next(denoiser.parameters()).dtype), str(vae.vae_dtype)])
    np.savez(outputs, **results)
