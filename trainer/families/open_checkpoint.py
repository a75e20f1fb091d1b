"""Open the base checkpoint that a path or a Hugging Face id names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import UserError
from ..core.files.paths import expand_home
from .checkpoints.base_checkpoint import BaseCheckpoint
from .checkpoints.weights_file import require_no_lfs_pointer
from .interface import NOWHERE
from .registry import recognising_family

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
_FORMATS = "Give a .safetensors file, a diffusers folder (with model_index.json), or a Hugging Face id such as owner/name."


def open_checkpoint(
    reference: str, vae: str = "", text_encoder: str = "", candidates: Mapping[str, Sequence[Path]] = NOWHERE
) -> BaseCheckpoint:
    """The checkpoint that ``reference`` names, with the VAE and the text encoder that ``vae`` and ``text_encoder`` name.

    A family whose models lie in several files finds those that are not named among ``candidates`` (see ``Family.with_parts``) or beside
    the checkpoint. Raises UserError when a file is missing or cannot be read.
    """
    checkpoint = _open(reference)
    family = recognising_family(checkpoint)
    return family.with_parts(checkpoint, vae, text_encoder, candidates) if family else checkpoint


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
        require_no_lfs_pointer(path)
        checkpoint = BaseCheckpoint(path.resolve(), "file")
        _ = checkpoint.file.quantised  # refuses a damaged file before anything heavy is loaded
        return checkpoint
    if _HUB_ID.match(reference):
        return BaseCheckpoint(_download(reference), "folder")
    raise UserError(f"The base checkpoint {reference!r} was not found.", _FORMATS, kind="checkpoint")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer*/*", "*/*.safetensors"]
    variants = ["*.fp16.*", "*.non_ema.*"]  # gigabytes that are not used where there are weights without a variant
    try:
        # the user names the model and means its newest revision; only safetensors and JSON are downloaded
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["safety_checker/*", *variants]))  # nosec B615
        if not any((folder / "unet").glob("*.safetensors")):  # some models have nothing but a variant
            folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["safety_checker/*"]))  # nosec B615
        return folder
    except Exception as error:  # network, authorisation and naming errors come in many types; the message shows the cause
        cause = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{hub_id!r} is not a local file or folder, and downloading it failed: {type(error).__name__}: {cause}",
            "Check the path, connect to the internet (a Hugging Face id needs it), or use a local checkpoint file.",
            kind="checkpoint",
        ) from error
