"""Models that lie in files of their own beside the denoiser's: opening one, and searching ComfyUI's folders for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UserError
from ...core.files.paths import expand_home
from ...core.messages import Message, Setting
from .digests import cached_digest
from .weights_file import WeightsFile, require_no_lfs_pointer, safetensors_header

Shapes = Mapping[str, tuple[int, ...]]
Recognise = Callable[[Shapes], bool]
_LEVELS = 3  # models/diffusion_models/author/model.safetensors: ``models`` is the third folder above
_MOST_FILES = 500  # of one folder


@dataclass(frozen=True)
class SeparatePart:
    """A VAE or text encoder beside the checkpoint: a single file, or a diffusers folder with its config.json (``is_folder``)."""

    path: Path
    is_folder: bool = False

    @property
    def name(self) -> str:
        """The name of the file or folder."""
        return self.path.name

    def identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 of the file, or of the folder's configuration and weights; cached as a checkpoint's digests are."""
        if not self.is_folder:
            return cached_digest(self.path, cache_dir, full)
        files = (path for path in sorted(self.path.iterdir()) if path.suffix in (".json", ".safetensors", ".bin"))
        return hashlib.sha256("".join(f"{path.name}\0{cached_digest(path, cache_dir, full)}\n" for path in files).encode()).hexdigest()


@dataclass(frozen=True)
class PartKind:
    """A kind of part: what messages call it, the setting that names it, the folders of ``models/`` in which ComfyUI keeps it, how
    its tensors are recognised, and a word in the names of the files that are preferred."""

    title: str
    setting: Setting
    folders: tuple[str, ...]
    recognise: Recognise
    preferred: str


def open_part(reference: str, kind: PartKind) -> SeparatePart:
    """The file ``reference`` as a part of this kind. Raises UserError when it is missing, damaged or something else."""
    path = expand_home(reference).resolve()
    if not path.is_file():
        hint = Message("Check ", kind.setting, ", or leave it empty to have the file searched beside the model.")
        raise UserError(f"The {kind.title} {reference!r} was not found.", hint, kind="checkpoint")
    require_no_lfs_pointer(path)
    if path.suffix.lower() != ".safetensors" or not kind.recognise(WeightsFile(path).shapes):
        hint = Message("Choose another file in ", kind.setting, ", or leave it empty to have the file searched beside the model.")
        raise UserError(f"{path.name} is not the {kind.title}.", hint, kind="checkpoint")
    return SeparatePart(path)


def find_part(checkpoint: Path, kind: PartKind) -> SeparatePart | None:
    """The best part of this kind beside ``checkpoint``: in its own folder, or in ComfyUI's folders for it. Reads headers only."""
    return best_part(_files_beside(checkpoint, kind.folders), kind)


def best_part(candidates: Iterable[Path], kind: PartKind) -> SeparatePart | None:
    """The first of ``candidates`` that is a part of this kind; those with the preferred word in their names come first."""
    ordered = sorted(candidates, key=lambda path: (kind.preferred not in path.name.lower(), path.name.lower(), str(path)))
    for path in ordered:
        with suppress(UserError, OSError):  # damaged files, and files of other formats
            if kind.recognise({key: shape for key, (shape, _) in safetensors_header(path).items()}):
                return SeparatePart(path.resolve())
    return None


def searched_folders(checkpoint: Path, names: Sequence[str]) -> list[Path]:
    """The folders called ``names`` beside ``checkpoint`` and beside the folders that it lies in."""
    return [above / name for above in checkpoint.parents[:_LEVELS] for name in names if (above / name).is_dir()]


def _files_beside(checkpoint: Path, names: Sequence[str]) -> Iterator[Path]:
    beside = (path for path in checkpoint.parent.glob("*.safetensors") if path != checkpoint)
    below = (path for folder in searched_folders(checkpoint, names) for path in list(folder.rglob("*.safetensors"))[:_MOST_FILES])
    return iter(dict.fromkeys([*beside, *below]))
