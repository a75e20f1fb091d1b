"""An autoencoder of one's own in place of the checkpoint's: a single file in either naming, or a diffusers folder."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.files.paths import expand_home
from . import ldm
from .checkpoint import BaseCheckpoint, cached_digest, laid_out_as
from .markers import read_json
from .parts import require_no_pointer, require_weights, weights_variant

if TYPE_CHECKING:
    import torch
    from torch import nn

_HINT = "Give a VAE for Stable Diffusion: a .safetensors file as in ComfyUI's models/vae, or a diffusers folder."
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of diffusers before 0.17


@dataclass(frozen=True)
class Vae:
    """A VAE on disk; ``folder`` says whether ``path`` is a diffusers folder with its config.json."""

    path: Path
    folder: bool

    @property
    def name(self) -> str:
        """The file's name, or the folder's."""
        return self.path.name

    def identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 of the file, or of the folder's configuration and weights; remembered as a checkpoint's is."""
        if not self.folder:
            return cached_digest(self.path, cache_dir, full)
        kept = (path for path in sorted(self.path.iterdir()) if path.suffix in (".json", ".safetensors", ".bin"))
        return hashlib.sha256("".join(f"{path.name}\0{cached_digest(path, cache_dir, full)}\n" for path in kept).encode()).hexdigest()

    def load(self, dtype: torch.dtype, scaling_factor: float) -> nn.Module:
        """``diffusers.AutoencoderKL``, frozen, on the CPU; a single file's latents are scaled by ``scaling_factor``."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        if self.folder:
            options = {"torch_dtype": dtype, "local_files_only": True, "variant": weights_variant(self.path)}
            model: Any = AutoencoderKL.from_pretrained(str(self.path), **options)
            return model.eval().requires_grad_(False)  # type: ignore[no-any-return]
        file = BaseCheckpoint(self.path, "file")
        prefix = _prefix(file.shapes)
        tensors = {key[len(prefix) :]: value for key, value in file.tensors(lambda key: key.startswith(prefix), dtype).items()}
        with laid_out_as(file, "vae", "VAE"), tempfile.TemporaryDirectory(prefix="animelora-") as folder:
            config = _config(file.shapes, prefix, scaling_factor)
            if _is_diffusers(file.shapes, prefix):
                model = AutoencoderKL.from_config(config).to(dtype)
                known = model.state_dict()
                named = {_present_name(key): value for key, value in tensors.items() if _present_name(key) in known}
                model.load_state_dict({key: value.reshape(known[key].shape) for key, value in named.items()})
            else:
                (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
                whole = {f"{ldm.VAE}{key}": value for key, value in tensors.items()}
                model = AutoencoderKL.from_single_file(whole, config=folder, torch_dtype=dtype, local_files_only=True)
                if any(tensor.is_meta for tensor in model.state_dict().values()):
                    raise NotImplementedError  # laid_out_as knows it
        return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def open_vae(reference: str) -> Vae:
    """The VAE that ``reference`` names: a file, a diffusers VAE's folder, or a diffusers model with a folder ``vae``.

    Raises UserError when there is none, or when it is of another kind of model.
    """
    path = expand_home(reference).resolve()
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL" or "latent_channels" not in config:
            raise UserError(f"The folder {path} is no diffusers VAE.", _HINT, kind="checkpoint")
        require_weights(folder, path.name)
        channels, shifted = int(config["latent_channels"]), config.get("shift_factor") or config.get("latents_mean")
        if channels != 4 or shifted:
            raise _other(path, channels)
        return Vae(folder, folder=True)
    if not path.is_file():
        hint = "Check base.vae, or leave it empty for the checkpoint's own."
        raise UserError(f"The VAE {reference!r} was not found.", hint, kind="checkpoint")
    if path.suffix.lower() not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{path.name} is no VAE file.", _HINT, kind="checkpoint")
    require_no_pointer(path)
    file = BaseCheckpoint(path, "file")
    shapes = file.shapes
    prefix = _prefix(shapes)
    if f"{prefix}encoder.conv_in.weight" not in shapes or f"{prefix}decoder.conv_in.weight" not in shapes:
        raise UserError(f"{path.name} holds no VAE with encoder and decoder.", _HINT, kind="checkpoint")
    if (channels := shapes[f"{prefix}decoder.conv_in.weight"][1]) != 4:
        raise _other(path, channels)
    with laid_out_as(file, "vae", "VAE"):
        _config(shapes, prefix, 1.0)
    return Vae(path, folder=False)


def _prefix(shapes: Mapping[str, Any]) -> str:
    return ldm.VAE if f"{ldm.VAE}encoder.conv_in.weight" in shapes else "vae." if "vae.encoder.conv_in.weight" in shapes else ""


def _is_diffusers(shapes: Mapping[str, Any], prefix: str) -> bool:
    return any(key.startswith(f"{prefix}encoder.down_blocks.") for key in shapes)


def _config(shapes: ldm.Shapes, prefix: str, scaling_factor: float) -> dict[str, Any]:
    """The configuration of ``AutoencoderKL`` from the shapes of either naming."""
    original = {}
    for key, shape in shapes.items():
        if key.startswith(prefix):
            name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", key[len(prefix) :])
            original[f"{ldm.VAE}{name}"] = shape
    return ldm.vae_config(original, scaling_factor=scaling_factor)


def _present_name(key: str) -> str:
    """diffusers' name of today for one of before."""
    if ".attentions." not in key:
        return key
    root, _, last = key.rpartition(".")
    parent, _, part = root.rpartition(".")
    return f"{parent}.{_OLD_ATTENTION.get(part, part)}.{last}"


def _other(path: Path, channels: int) -> UserError:
    return UserError(
        f"{path.name} is the VAE of another kind of model (its latents have {channels} channels, or are shifted).", _HINT, kind="checkpoint"
    )
