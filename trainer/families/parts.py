"""What a diffusers folder or a single file must hold before a run is planned: every part, with weights that are there and can be read."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import UserError
from . import ldm, quantised
from .checkpoint import BaseCheckpoint, safetensors_header
from .markers import read_json

_LFS = b"version https://git-lfs.github.com/spec/"
_VARIANTS = ("", "fp32", "bf16", "fp16", "non_ema", "ema")  # best first; "": without a variant's name
_WEIGHTS = re.compile(r"^(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")


def require_parts(checkpoint: BaseCheckpoint, text_encoders: tuple[str, ...]) -> None:
    """Raise UserError unless UNet, autoencoder and text encoders are there and readable. ``text_encoders``: their folders' names."""
    if checkpoint.kind == "file":
        if checkpoint.vae is None:
            ldm.vae_config(checkpoint.shapes, scaling_factor=1.0)
        return
    for part in ("unet", *(() if checkpoint.vae else ("vae",)), *text_encoders):
        folder = checkpoint.path / part
        if not (folder / "config.json").is_file():
            hint = "Download the model again with all its folders"
            hint += ", or name a VAE of your own in base.vae." if part == "vae" else "."
            raise UserError(f"{checkpoint.name} has no {part} ({part}/config.json is missing).", hint, kind="checkpoint")
        require_weights(folder, f"{checkpoint.name}/{part}")


def require_weights(folder: Path, name: str) -> None:
    """Raise UserError unless ``folder`` holds the weights of one model, which ``name`` calls it; nothing heavy is read."""
    if "quantization_config" in read_json(folder / "config.json"):
        raise UserError(
            f"{name} is quantised ({folder.name}/config.json: quantization_config), which this version cannot read.",
            "Use the model in fp16, bf16 or fp32. training.base_precision makes it small in memory.",
            kind="checkpoint",
        )
    variant = weights_variant(folder)
    for path in _weights(folder).get(variant or "", []):
        require_no_pointer(path)
        if path.suffix == ".safetensors" and (scale := next(filter(quantised.is_companion, safetensors_header(path)), "")):
            raise UserError(
                f"{name} is quantised ({scale} in {path.name}), which is read from single files only.",
                "Use the model in fp16, bf16 or fp32, or as a single file.",
                kind="checkpoint",
            )


def weights_variant(folder: Path) -> str | None:
    """The variant to load from a model's ``folder``: None for plain names, else ``fp16``, ``non_ema`` or the like. Raises UserError
    when there are no weights."""
    found = _weights(folder)
    if not found:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "nothing"
        raise UserError(
            f"{folder} holds no weights (*.safetensors); it has {present}.",
            "Download the model again with all its files.",
            kind="checkpoint",
        )
    best = min(found, key=lambda variant: _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS))
    return best or None


def require_no_pointer(path: Path) -> None:
    """Raise UserError when ``path`` is not the file itself but Git LFS' note of it."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the folder's permissions.", kind="checkpoint") from error
    if start == _LFS:
        raise UserError(
            f"{path} is not the file itself but a Git LFS pointer of a few lines: the model was cloned without its weights.",
            "Run `git lfs pull` in the model's folder, or download the file.",
            kind="checkpoint",
        )


def _weights(folder: Path) -> dict[str, list[Path]]:
    """The weight files of each variant; .safetensors wins over .bin."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (match := _WEIGHTS.match(path.name)):
            found.setdefault(match["variant"] or "", []).append(path)
    for variant, paths in found.items():
        if any(path.suffix == ".safetensors" for path in paths):
            found[variant] = [path for path in paths if path.suffix == ".safetensors"]
    return found
