"""Run by ComfyUI's own interpreter: the models of a small Lumina 2 checkpoint, applied to given images, latents and prompts, in fp32.

python lumina2_in_comfyui.py COMFYUI CHECKPOINT INPUTS.npz OUTPUTS.npz

ComfyUI recognises the sizes of the published models alone, so that its classes are given those of the checkpoint here.
"""

# ruff: noqa: E402 (ComfyUI wants its options set before its modules are imported)
from __future__ import annotations

import dataclasses
import sys
from typing import Any

comfyui, checkpoint, inputs, outputs = sys.argv[1:5]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]

import comfy.options

comfy.options.enable_args_parsing()

import comfy.latent_formats
import comfy.ldm.lumina.model
import comfy.ldm.models.autoencoder
import comfy.model_detection
import comfy.ops
import comfy.supported_models
import comfy.text_encoders.llama
import comfy.text_encoders.lumina2
import comfy.utils
import numpy as np
import torch


def part(prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint below ``prefix``, without it."""
    return {key[len(prefix) :]: tensor.float() for key, tensor in tensors.items() if key.startswith(prefix)}


def typed(caption: str) -> str:
    """A caption as it is typed into ComfyUI, where brackets without a backslash mean emphasis."""
    return caption.replace("(", "\\(").replace(")", "\\)")


with torch.inference_mode():
    given = np.load(inputs)
    tensors = comfy.utils.load_torch_file(checkpoint)
    tokenizer_model = tensors.pop("text_encoders.spiece_model")
    results: dict[str, Any] = {}

    published = comfy.text_encoders.llama.Gemma2_2B_Config
    weights = part("text_encoders.gemma2_2b.")
    sizes = {
        "vocab_size": weights["transformer.model.embed_tokens.weight"].shape[0],
        "hidden_size": weights["transformer.model.embed_tokens.weight"].shape[1],
        "intermediate_size": weights["transformer.model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": sum(key.endswith("input_layernorm.weight") for key in weights),
        "num_attention_heads": weights["transformer.model.layers.0.self_attn.q_proj.weight"].shape[0] // 256,
        "num_key_value_heads": weights["transformer.model.layers.0.self_attn.k_proj.weight"].shape[0] // 256,
    }
    comfy.text_encoders.llama.Gemma2_2B_Config = lambda **options: dataclasses.replace(published(**options), **sizes)
    clip = comfy.text_encoders.lumina2.te()(dtype=torch.float32)
    missing, unexpected = clip.gemma2_2b.load_state_dict(weights, strict=False)
    assert set(missing) <= {"logit_scale"} and not unexpected, (missing, unexpected)
    tokenizer = comfy.text_encoders.lumina2.LuminaTokenizer(tokenizer_data={"spiece_model": tokenizer_model})
    contexts = []
    for number, prompt in enumerate(given["prompts"]):
        tokens = tokenizer.tokenize_with_weights(typed(str(prompt)))
        results[f"tokens {number}"] = np.array([token[0] for token in tokens["gemma2_2b"][0]])
        contexts.append(clip.encode_token_weights(tokens)[0])
        results[f"context {number}"] = contexts[-1][0].float().numpy()
    weighted = tokenizer.tokenize_with_weights(str(given["weighted"]))
    results["weighted"] = clip.encode_token_weights(weighted)[0][0].float().numpy()

    state = part("model.diffusion_model.")
    found = comfy.model_detection.detect_unet_config(state, "")
    assert found["image_model"] == "lumina2"
    results["recognised"] = np.array([found["n_layers"], found["dim"], found["cap_feat_dim"]])
    head = state["layers.0.attention.q_norm.weight"].shape[0]
    heads = {"n_heads": found["dim"] // head, "axes_dims": [head // 3] * 3}
    heads["n_kv_heads"] = (state["layers.0.attention.qkv.weight"].shape[0] // head - heads["n_heads"]) // 2
    settings = {**found, **heads, "ffn_dim_multiplier": 4.0, "rope_theta": 10000.0}
    model: Any = comfy.ldm.lumina.model.NextDiT(**settings, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and unexpected == ["norm_final.weight"], (missing, unexpected)
    latents, timesteps = torch.from_numpy(given["latents"]), torch.from_numpy(given["timesteps"])
    for number, context in enumerate(contexts[: len(latents)]):
        one = slice(number, number + 1)
        velocity = model(latents[one], timesteps[one], context, context.shape[1], transformer_options={})
        results[f"velocity {number}"] = velocity.float().numpy()

    state = part("vae.")
    options = {
        "params": {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch_mult": [1, 2, 4, 4],
                   "ch": state["encoder.conv_in.weight"].shape[0], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
    }  # fmt: skip
    vae: Any = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", **options},
        decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", **options},
    )
    vae.float().load_state_dict(state)
    latent_format = comfy.supported_models.Lumina2.latent_format()
    assert isinstance(latent_format, comfy.latent_formats.Flux)
    results["encoded"] = latent_format.process_in(vae.encode(torch.from_numpy(given["pixels"]))).numpy()
    results["decoded"] = vae.decode(latent_format.process_out(latents[:1])).numpy()
    sampling = comfy.supported_models.Lumina2.sampling_settings
    results["shift"] = np.array([sampling["shift"], sampling["multiplier"]])
    np.savez(outputs, **results)
