"""Load MODEL, CLIP and VAE from a checkpoint with the layout of Stable Diffusion 1.x and any widths.

ComfyUI recognises SD 1.x by its full-size widths. Here the widths are read from the tensor shapes and passed to ComfyUI's own classes, so
that a small model is sampled, patched and saved by the same code as a large one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths

from ....trainer.core.errors import UserError
from ....trainer.core.files.torch_files import check_torch_file
from ....trainer.families.sd1 import FAMILY as SD1
from ....trainer.families.stable_diffusion import ldm_configs
from ..schema import known

_TEXT = "cond_stage_model.transformer.text_model."
_HEAD_WIDTH = 64  # CLIP's attention heads are 64 wide in every size that Stable Diffusion 1.x uses


class SmallSD15(comfy.supported_models.SD15):
    """ComfyUI's Stable Diffusion 1.x with any widths."""

    unet_config: dict[str, Any] = {}  # noqa: RUF012 (ComfyUI's own attribute)


def load_small_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE. Raises UserError when the file is damaged or of another family."""
    try:
        if path.suffix.lower() not in (".safetensors", ".sft"):
            check_torch_file(path)
        tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # torch, safetensors and the file system each raise their own types
        raise UserError(f"{path.name} cannot be read ({error}).", "Copy or download it again.", kind="checkpoint") from error
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    _check_family(path.name, shapes)
    model, clip, vae = _model(tensors), _clip(tensors, shapes), _vae(tensors, shapes)
    # lets ComfyUI load another copy of the model; its own Train LoRA asks for one
    for place, patcher in enumerate((model, clip.patcher, vae.patcher)):
        patcher.cached_patcher_init = (_patchers, (path,), place)
    return model, clip, vae


def _patchers(path: Path, disable_dynamic: bool = False) -> tuple[Any, Any, Any]:
    """Newly loaded patchers of model, text encoder and VAE. They are never dynamic."""
    model, clip, vae = load_small_checkpoint(path)
    return model, clip.patcher, vae.patcher


def _check_family(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    config = ldm_configs.unet_config(shapes, heads=SD1.heads)
    widths = config["block_out_channels"]
    wrong = ""
    if any(width % widths[0] or width % 32 for width in widths):
        wrong = f"its widths {widths} are not multiples of the first one and of 32"
    elif config["use_linear_projection"] or f"{ldm_configs.UNET}label_emb.0.0.weight" in shapes:
        wrong = "it is a Stable Diffusion 2 or SDXL model"
    elif config["in_channels"] != 4:
        wrong = f"it takes {config['in_channels']} latent channels instead of 4"
    elif f"{_TEXT}embeddings.token_embedding.weight" not in shapes:
        wrong = "it has no CLIP text encoder"
    if wrong:
        raise UserError(
            f"{name} does not have the layout of Stable Diffusion 1.x: {wrong}.",
            "Load it with ComfyUI's Load Checkpoint instead.",
            kind="checkpoint",
        )


def _model(tensors: dict[str, Any]) -> Any:
    management = comfy.model_management
    config = SmallSD15(comfy.model_detection.detect_unet_config(tensors, ldm_configs.UNET))
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors, ldm_configs.UNET),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(tensors, ldm_configs.UNET),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    offload = management.unet_offload_device()
    model = config.get_model(tensors, ldm_configs.UNET, device=offload)
    model.load_model_weights(tensors, ldm_configs.UNET)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _clip(tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    config = ldm_configs.clip_config(shapes, prefix=_TEXT, head_dim=_HEAD_WIDTH, activation="quick_gelu")
    target = SmallSD15({}).clip_target()
    weights = SmallSD15({}).process_clip_state_dict({key: value for key, value in tensors.items() if key.startswith("cond_stage_model.")})
    arguments = {
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
        "tokenizer_data": weights,
        "parameters": comfy.utils.calculate_parameters(weights),
        "model_options": {"clip_l_model_config": config},
    }
    at_once = known(comfy.sd.CLIP.__init__, {"state_dict": weights, "disable_dynamic": True})
    clip = comfy.sd.CLIP(target, **arguments, **at_once)
    if "state_dict" not in at_once:  # ComfyUI 0.3.64 loads the weights in a second step
        clip.load_sd(weights, full_model=True)
    return clip


def _vae(tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    config = ldm_configs.vae_config(shapes, scaling_factor=SD1.latents.scaling_factor)
    widths = config["block_out_channels"]
    weights = {key.removeprefix(ldm_configs.VAE): value for key, value in tensors.items() if key.startswith(ldm_configs.VAE)}
    layout = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": layout, "embed_dim": config["latent_channels"]}})
    vae.latent_channels = config["latent_channels"]
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(widths) - 1)
    return vae
