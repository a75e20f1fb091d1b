"""Folders in the diffusers layout: their configurations, which weights to load, and loading them without the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files.reading import read_regular
from ...core.messages import Message, Setting
from .quantised_weights import is_companion
from .weights_file import require_no_lfs_pointer, safetensors_header

_LARGEST_CONFIG = 16 << 20  # bytes
_VARIANTS = ("", "fp32", "bf16", "fp16", "non_ema", "ema")  # best first; "": file names without a variant
_WEIGHTS = re.compile(r"^(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file. Raises UserError when it cannot be read."""
    try:
        data = json.loads(read_regular(path, _LARGEST_CONFIG).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Copy the model folder again.", kind="checkpoint") from error
    return data if isinstance(data, dict) else {}


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The ``scheduler_config.json`` of a model's folder; empty without one."""
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path) if path.is_file() else {}


def require_weights(folder: Path, name: str) -> None:
    """Raise UserError unless ``folder`` holds readable weights of one model, which messages call ``name``. Reads headers only."""
    if "quantization_config" in read_json(folder / "config.json"):
        raise UserError(
            f"{name} is quantised ({folder.name}/config.json: quantization_config), which this version cannot read.",
            Message("Use the model in fp16, bf16 or fp32. ", Setting("training.base_precision"), " reduces its memory use."),
            kind="checkpoint",
        )
    variant = weights_variant(folder)
    for path in _weights(folder).get(variant or "", []):
        require_no_lfs_pointer(path)
        if path.suffix == ".safetensors" and (scale := next(filter(is_companion, safetensors_header(path)), "")):
            raise UserError(
                f"{name} is quantised ({scale} in {path.name}), which is supported for single files only.",
                "Use the model in fp16, bf16 or fp32, or as a single file.",
                kind="checkpoint",
            )


def weights_variant(folder: Path) -> str | None:
    """The variant of the weights to load from ``folder``: ``fp16``, ``non_ema`` and so on; None for file names without a variant.

    Raises UserError when the folder holds no weights.
    """
    found = _weights(folder)
    if not found:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "nothing"
        raise UserError(
            f"{folder} holds no weights (*.safetensors), only {present}.",
            "Download the model again with all its files.",
            kind="checkpoint",
        )
    best = min(found, key=lambda variant: _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS))
    return best or None


def load_from_folder(cls: Any, path: Path, **options: Any) -> Any:
    """A model of diffusers or transformers from ``path``, never from the network.

    Raises NotImplementedError when weights are missing: both libraries only log that, and leave those weights random.
    """
    try:
        model, report = cls.from_pretrained(str(path), local_files_only=True, output_loading_info=True, **options)
    except OSError as error:
        raise ValueError(str(error)) from error
    if any(not key.endswith("position_ids") for key in report["missing_keys"]):
        raise NotImplementedError
    return model


def _weights(folder: Path) -> dict[str, list[Path]]:
    """The weight files of each variant. Where a variant has both, .safetensors is preferred to .bin."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (match := _WEIGHTS.match(path.name)):
            found.setdefault(match["variant"] or "", []).append(path)
    for variant, paths in found.items():
        if any(path.suffix == ".safetensors" for path in paths):
            found[variant] = [path for path in paths if path.suffix == ".safetensors"]
    return found
