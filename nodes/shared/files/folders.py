"""The folders where the pack reads and writes inside ComfyUI, and the entries of its menus."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths

from ....trainer.core.errors import UserError
from ....trainer.core.files.paths import resolve_below
from ....trainer.core.files.reading import file_stamp

DEMO_BASE = "AnimeLoRA demo base (embedded)"
REGISTERED = "animelora_datasets"  # the key for dataset folders in extra_model_paths.yaml
_MARK = "[datasets] "
_DEEPEST = 3  # folder levels in the dataset menu
_MOST = 2000  # entries of the dataset menu; more would not be usable as a menu


def input_dir() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def datasets_dir() -> Path:
    """The folder of prepared datasets."""
    return Path(folder_paths.get_output_directory()) / "animelora" / "datasets"


def runs_dir() -> Path:
    """The folder of training runs."""
    return Path(folder_paths.get_output_directory()) / "animelora" / "runs"


def exports_dir() -> Path:
    """The folder of exported LoRAs."""
    return Path(folder_paths.get_output_directory()) / "animelora" / "exports"


def loras_dir() -> Path:
    """The first of ComfyUI's LoRA folders, where finished LoRAs go."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def registered_dirs() -> list[Path]:
    """Dataset folders that the user registered in extra_model_paths.yaml."""
    if REGISTERED not in folder_paths.folder_names_and_paths:
        return []
    return [Path(path) for path in folder_paths.get_folder_paths(REGISTERED) if os.path.isdir(path)]


def readable_dirs() -> list[Path]:
    """The folders that links may lead into: ComfyUI's input folder and the registered ones."""
    return [input_dir(), *registered_dirs()]


def source_folders() -> list[str]:
    """The entries of the dataset menu: folders and archives below input/, then registered folders and those below them."""
    names = _folders_below(input_dir())
    for root in registered_dirs():
        names += [f"{_MARK}{root.name}", *(f"{_MARK}{root.name}/{name}" for name in _folders_below(root))]
    return list(dict.fromkeys(names))[:_MOST]


def source_folder(name: str) -> Path:
    """The folder or archive of an entry of the dataset menu. Raises UserError when it is gone or outside the allowed folders."""
    if not name.startswith(_MARK):
        found = resolve_below(name, [input_dir()], what="image folder")
    else:
        head, _, rest = name.removeprefix(_MARK).partition("/")
        roots = [root for root in registered_dirs() if root.name == head]
        found = resolve_below(rest or ".", roots, what="image folder")
    if not found.is_dir() and not _is_archive(found.name):
        raise UserError(f"{name!r} is a file, not a folder of images.", "Choose the folder that holds the images.", kind="path")
    return found


def tree_digest(folder: Path) -> str:
    """A digest that changes when a file below ``folder`` is added, removed, written or replaced."""
    digest = hashlib.sha256()
    if folder.is_file():  # an archive
        return file_stamp(folder)
    folders = [str(folder)]  # not os.walk, which is recursive before Python 3.12 and fails in deep trees
    while folders:
        path = folders.pop()
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.path) for entry in entries)
        except OSError:  # no permission; preparing the dataset reports it
            continue
        folders += [place for _, is_folder, place in reversed(found) if is_folder]
        for name, is_folder, place in found:
            if is_folder:
                continue
            try:
                stamp = file_stamp(place)
            except OSError:  # a broken link; preparing the dataset reports it
                continue
            digest.update(f"{path}/{name} {stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def model_files(kind: str, folder: str) -> dict[str, Path]:
    """The .onnx files below models/``folder`` and below the folders registered as ``kind``, by their menu entry."""
    roots = [Path(folder_paths.models_dir) / folder]
    if kind in folder_paths.folder_names_and_paths:
        roots += [Path(path) for path in folder_paths.get_folder_paths(kind)]
    found = {path.relative_to(root).as_posix(): path for root in roots if root.is_dir() for path in sorted(root.rglob("*.onnx"))}
    return dict(list(found.items())[:_MOST])


def checkpoint_names() -> list[str]:
    """ComfyUI's checkpoints and the embedded demo base, so that the menu is never empty."""
    return [*folder_paths.get_filename_list("checkpoints"), DEMO_BASE]


def checkpoint_path(name: str) -> Path:
    """The file of an entry of the checkpoint menu."""
    if name == DEMO_BASE:
        embedded = demo_base_path()
        if not embedded.is_file():
            raise UserError(
                "The embedded demo base is missing from this copy of the pack.",
                f"Install the pack again, so that its folder demo/base holds {embedded.name}.",
                kind="checkpoint",
            )
        return embedded
    return listed_path("checkpoints", name, "checkpoint")


def demo_base_path() -> Path:
    """The small model that comes with the pack."""
    return Path(__file__).resolve().parents[3] / "demo" / "base" / "animelora-base.safetensors"


def vae_names() -> list[str]:
    """ComfyUI's VAE list."""
    return list(folder_paths.get_filename_list("vae"))


def vae_path(name: str) -> Path:
    """The file of an entry of the VAE menu."""
    return listed_path("vae", name, "VAE")


def text_encoder_names() -> list[str]:
    """ComfyUI's list of text encoders."""
    return list(folder_paths.get_filename_list("text_encoders"))


def text_encoder_path(name: str) -> Path:
    """The file of an entry of the text encoder menu."""
    return listed_path("text_encoders", name, "text encoder")


def lora_names() -> list[str]:
    """ComfyUI's LoRA list."""
    return list(folder_paths.get_filename_list("loras"))


def lora_path(name: str) -> Path:
    """The file of an entry of the LoRA menu."""
    return listed_path("loras", name, "LoRA")


def listed_lora(path: Path) -> str:
    """The entry of the LoRA menu for ``path``; empty when it has none.

    A LoRA folder may be a link, a junction or a mapped drive, and ``path`` may go through it or be its target.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths("loras")]
    pairs = [(each, root) for root in roots for each, root in ((path, root), (path, root.resolve()), (path.resolve(), root.resolve()))]
    names = [str(each.relative_to(root)) for each, root in pairs if root in each.parents]
    return next((name for name in names if name in lora_names()), "")


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", ".cbz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")) and not name.startswith(".")


def listed_path(kind: str, name: str, what: str) -> Path:
    """The path of a list entry. ComfyUI's lists follow links, so every entry is allowed wherever it leads."""
    found = folder_paths.get_full_path(kind, name) if name in folder_paths.get_filename_list(kind) else None
    if found is None:
        raise UserError(f"The {what} {name!r} is not in ComfyUI's list.", f"Put it in models/{kind} and refresh the page.", kind="path")
    return Path(found)


def _folders_below(root: Path) -> list[str]:
    """Folders and archives below ``root`` as ``a/b``, sorted, without hidden ones and without following symbolic links."""
    names: list[str] = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        relative = Path(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if _is_archive(name)]
        if relative.parts:
            names.append(relative.as_posix())
        if len(relative.parts) >= _DEEPEST or len(names) >= _MOST:
            below.clear()
    return sorted(names)
