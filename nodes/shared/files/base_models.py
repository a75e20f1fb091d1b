"""Models to train on, as the menu of Train LoRA lists them, and the files that belong to a model in several files."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import folder_paths

from ....trainer.core.files.reading import file_stamp
from .folders import DEMO_BASE, checkpoint_names, checkpoint_path, listed_path

_MARK = "[diffusion_models] "
_PART_FOLDERS = {"text_encoder": "text_encoders", "vae": "vae"}


def base_model_names() -> list[str]:
    """The entries of the menu: checkpoints, and those of ComfyUI's diffusion models that can be trained."""
    names = folder_paths.get_filename_list("diffusion_models")
    return [*checkpoint_names(), *(f"{_MARK}{name}" for name in names if _is_trainable(name, "diffusion_models"))]


def default_base_model() -> str:
    """The entry of that menu which a new node has: the first checkpoint that can be trained on, else the embedded demo base."""
    return next((name for name in folder_paths.get_filename_list("checkpoints") if _is_trainable(name, "checkpoints")), DEMO_BASE)


def base_model_path(name: str) -> Path:
    """The file of an entry of that menu. Raises UserError when it is gone."""
    if not name.startswith(_MARK):
        return checkpoint_path(name)
    return listed_path("diffusion_models", name.removeprefix(_MARK), "model")


def found_parts(model: Path) -> dict[str, Path]:
    """Text encoder and VAE of ``model`` among ComfyUI's files, by the names of their settings; empty for a model that has its own.

    Raises UserError for a file that cannot be read.
    """
    from ....trainer.families import open_checkpoint

    candidates = {part: _files(folder) for part, folder in _PART_FOLDERS.items()}
    checkpoint = open_checkpoint(str(model), candidates=candidates)
    parts = {"text_encoder": checkpoint.text_encoder, "vae": checkpoint.vae}
    return {name: part.path for name, part in parts.items() if part is not None}


def base_model_stamp(name: str) -> str:
    """Changes when the model of a menu entry, or one of the files that belong to it, is replaced."""
    model = base_model_path(name)
    parts = sorted(found_parts(model).values()) if name.startswith(_MARK) else []
    return " ".join(file_stamp(path) for path in (model, *parts))


def _files(folder: str) -> list[Path]:
    paths = (folder_paths.get_full_path(folder, name) for name in folder_paths.get_filename_list(folder))
    return [Path(path) for path in paths if path is not None and path.lower().endswith(".safetensors")]


def _is_trainable(name: str, kind: str) -> bool:
    path = folder_paths.get_full_path(kind, name)
    with suppress(OSError):
        return path is not None and _recognised(path, file_stamp(Path(path)))
    return False


@lru_cache(maxsize=4096)
def _recognised(path: str, stamp: str) -> bool:
    """Whether a model family recognises the file, by its header; ``stamp`` changes with it."""
    from ....trainer.families import is_base_model

    return is_base_model(Path(path))
