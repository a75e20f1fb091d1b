"""The menu entries of the files that a run was made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ....trainer.config.run_config import RunConfig
from ....trainer.core.errors import UserError
from ..files.base_models import base_model_names, base_model_path, found_parts
from ..files.folders import lora_names, lora_path, text_encoder_names, text_encoder_path, vae_names, vae_path
from ..widgets.training_widgets import OWN_TEXT_ENCODER, OWN_VAE

Entry = Callable[[str], str | None]


def entries(config: RunConfig) -> Mapping[str, Entry]:
    """By key of a setting that is a path: the menu entry for the path, None if no menu lists it.

    A text encoder or VAE that is found beside the model without being chosen is the menu's first entry.
    """
    parts: dict[str, Path] = {}
    with suppress(UserError, OSError, ValueError):
        parts = found_parts(Path(config.base.checkpoint))
    return {
        "base.checkpoint": lambda path: _listed(path, base_model_names, base_model_path),
        "base.lora": lambda path: _listed(path, lora_names, lora_path),
        "base.vae": lambda path: OWN_VAE if _is_same(parts.get("vae"), path) else _listed(path, vae_names, vae_path),
        "base.text_encoder": lambda path: (
            OWN_TEXT_ENCODER if _is_same(parts.get("text_encoder"), path) else _listed(path, text_encoder_names, text_encoder_path)
        ),
    }


def _listed(path: str, names: Callable[[], list[str]], path_of: Callable[[str], Path]) -> str | None:
    for name in names():
        with suppress(UserError):
            if _is_same(path_of(name), path):
                return name
    return None


def _is_same(place: Path | None, path: str) -> bool:
    """Whether both are the same path. Nothing is read: ``path`` comes from a file of a run."""
    return place is not None and (str(place) == path or str(place.absolute()) == path)
