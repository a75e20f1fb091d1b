"""Open and load a separate VAE: a single file with LDM or diffusers names, or a diffusers folder."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.files.paths import expand_home
from ...core.messages import Message, Setting
from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..checkpoints.diffusers_folder import read_json, require_weights, weights_variant
from ..checkpoints.require_filled import require_filled
from ..checkpoints.separate_parts import SeparatePart
from ..checkpoints.weights_file import WeightsFile, require_no_lfs_pointer
from . import ldm_configs

if TYPE_CHECKING:
    import torch
    from torch import nn

_HINT = "Choose a VAE for Stable Diffusion: a .safetensors file from ComfyUI's models/vae, or a diffusers folder."
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of diffusers before 0.17


def open_vae(reference: str) -> SeparatePart:
    """The VAE that ``reference`` names: a file, the folder of a diffusers VAE, or a diffusers model with a folder ``vae``.

    Raises UserError when there is none, or when it belongs to another kind of model.
    """
    path = expand_home(reference).resolve()
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        hint = Message("Check ", Setting("base.vae"), ", or leave it empty to use the checkpoint's own VAE.")
        raise UserError(f"The VAE {reference!r} was not found.", hint, kind="checkpoint")
    if path.suffix.lower() not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{path.name} is not a VAE file.", _HINT, kind="checkpoint")
    require_no_lfs_pointer(path)
    shapes = WeightsFile(path).shapes
    prefix = _prefix(shapes)
    if f"{prefix}encoder.conv_in.weight" not in shapes or f"{prefix}decoder.conv_in.weight" not in shapes:
        raise UserError(f"{path.name} holds no VAE with an encoder and a decoder.", _HINT, kind="checkpoint")
    if (channels := shapes[f"{prefix}decoder.conv_in.weight"][1]) != 4:
        raise _other_model(path, channels)
    with layout_errors(path.name, "vae", "VAE"):
        _config(shapes, prefix, 1.0)
    return SeparatePart(path, is_folder=False)


def load_vae(vae: SeparatePart, dtype: torch.dtype, scaling_factor: float) -> nn.Module:
    """``diffusers.AutoencoderKL``, frozen, on the CPU. The latents of a single file are scaled by ``scaling_factor``."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if vae.is_folder:
        options = {"torch_dtype": dtype, "local_files_only": True, "variant": weights_variant(vae.path)}
        model: Any = AutoencoderKL.from_pretrained(str(vae.path), **options)
        return model.eval().requires_grad_(False)  # type: ignore[no-any-return]
    file = WeightsFile(vae.path)
    prefix = _prefix(file.shapes)
    tensors = {key[len(prefix) :]: value for key, value in file.tensors(lambda key: key.startswith(prefix), dtype).items()}
    with layout_errors(vae.name, "vae", "VAE"):
        config = _config(file.shapes, prefix, scaling_factor)
        if _has_diffusers_names(file.shapes, prefix):
            model = AutoencoderKL.from_config(config).to(dtype)
            known = model.state_dict()
            named = {_current_name(key): value for key, value in tensors.items() if _current_name(key) in known}
            model.load_state_dict({key: value.reshape(known[key].shape) for key, value in named.items()})
        else:
            model = load_ldm_vae({f"{ldm_configs.VAE}{key}": value for key, value in tensors.items()}, config, dtype)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def load_ldm_vae(tensors: dict[str, torch.Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """``diffusers.AutoencoderKL`` from tensors with LDM names. Raises NotImplementedError when some are missing."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with tempfile.TemporaryDirectory(prefix="animelora-") as name:  # without a configuration, from_single_file asks the network for one
        folder = Path(name) / "vae"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = AutoencoderKL.from_single_file(tensors, config=name, subfolder="vae", torch_dtype=dtype, local_files_only=True)
    require_filled(model)
    return model


def _open_folder(path: Path) -> SeparatePart:
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL" or "latent_channels" not in config:
        raise UserError(f"The folder {path} is not a diffusers VAE.", _HINT, kind="checkpoint")
    require_weights(folder, path.name)
    channels, shifted = int(config["latent_channels"]), config.get("shift_factor") or config.get("latents_mean")
    if channels != 4 or shifted:
        raise _other_model(path, channels)
    return SeparatePart(folder, is_folder=True)


def describe_latents(checkpoint: BaseCheckpoint, scaling_factor: float) -> str:
    """How the VAE's latents become those that are trained on: ``scaling_factor`` is that of the family, which single files have."""
    own = checkpoint.path / "vae" if checkpoint.kind == "folder" else None
    folder = own if checkpoint.vae is None else checkpoint.vae.path if checkpoint.vae.is_folder else None
    if folder is not None:
        scaling_factor = float(read_json(folder / "config.json").get("scaling_factor", scaling_factor))
    return f"scaled by {scaling_factor:g}, not shifted"


def _prefix(shapes: Mapping[str, Any]) -> str:
    prefixes = (ldm_configs.VAE, "vae.")
    return next((prefix for prefix in prefixes if f"{prefix}encoder.conv_in.weight" in shapes), "")


def _has_diffusers_names(shapes: Mapping[str, Any], prefix: str) -> bool:
    return any(key.startswith(f"{prefix}encoder.down_blocks.") for key in shapes)


def _config(shapes: ldm_configs.Shapes, prefix: str, scaling_factor: float) -> dict[str, Any]:
    """The configuration of ``AutoencoderKL`` from shapes with LDM or diffusers names."""
    original = {}
    for key, shape in shapes.items():
        if key.startswith(prefix):
            name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", key[len(prefix) :])
            original[f"{ldm_configs.VAE}{name}"] = shape
    return ldm_configs.vae_config(original, scaling_factor=scaling_factor)


def _current_name(key: str) -> str:
    """The name that diffusers uses today for a tensor of an older file."""
    if ".attentions." not in key:
        return key
    root, _, last = key.rpartition(".")
    parent, _, part = root.rpartition(".")
    return f"{parent}.{_OLD_ATTENTION.get(part, part)}.{last}"


def _other_model(path: Path, channels: int) -> UserError:
    return UserError(
        f"{path.name} is the VAE of another kind of model (its latents have {channels} channels, or are shifted).", _HINT, kind="checkpoint"
    )
