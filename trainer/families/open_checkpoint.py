"""Opening the checkpoint that a path or a hub id names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..core.files.paths import expand_home

if TYPE_CHECKING:
    pass
from .checkpoint import BaseCheckpoint

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")


_FORMATS = "Give a .safetensors file, a diffusers folder (with model_index.json), or a hub id such as owner/name."


def open_checkpoint(reference: str, vae: str = "") -> BaseCheckpoint:
    """The checkpoint that ``reference`` names, with the VAE that ``vae`` names, if it does. Raises UserError when there is none or it
    cannot be read."""
    checkpoint = _open(reference)
    if not vae:
        return checkpoint
    from .vae import open_vae

    return replace(checkpoint, vae=open_vae(vae))


def _open(reference: str) -> BaseCheckpoint:
    if "\x00" in reference or not reference.strip():
        raise UserError("No base checkpoint was given.", _FORMATS, kind="checkpoint")
    path = expand_home(reference)
    if path.is_dir():
        if not (path / "unet" / "config.json").is_file():
            raise UserError(f"The folder {path} is not a diffusers model: unet/config.json is missing.", _FORMATS, kind="checkpoint")
        return BaseCheckpoint(path.resolve(), "folder")
    if path.is_file():
        if path.suffix.lower() not in (".safetensors", ".ckpt", ".pt", ".pth"):
            raise UserError(f"{path.name} is not a checkpoint file.", _FORMATS, kind="checkpoint")
        from .parts import require_no_pointer

        require_no_pointer(path)
        checkpoint = BaseCheckpoint(path.resolve(), "file")
        _ = checkpoint.scaled  # a broken file is refused here, before anything heavy
        return checkpoint
    if _HUB_ID.match(reference):
        return BaseCheckpoint(_download(reference), "folder")
    raise UserError(f"The base checkpoint {reference!r} was not found.", _FORMATS, kind="checkpoint")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer*/*", "*/*.safetensors"]
    variants = ["*.fp16.*", "*.non_ema.*"]  # gigabytes that training does not open where there are plain ones
    try:
        # the person at the terminal names the model and means its newest revision; only safetensors and JSON are fetched
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["safety_checker/*", *variants]))  # nosec B615
        if not any((folder / "unet").glob("*.safetensors")):  # some models have nothing but a variant
            folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["safety_checker/*"]))  # nosec B615
        return folder
    except Exception as error:  # network, authorisation and naming errors come in many types; the cause is shown
        cause = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{hub_id!r} is not a file or folder here, and the hub did not give it: {type(error).__name__}: {cause}",
            "Check the path, or go online (a hub id needs the network), or use a checkpoint file of your own.",
            kind="checkpoint",
        ) from error
