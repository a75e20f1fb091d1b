"""A base checkpoint on disk: a single file or a diffusers folder, its identity, and the errors of loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UserError
from .digests import cached_digest, has_digest
from .separate_parts import SeparatePart
from .weights_file import WeightsFile

if TYPE_CHECKING:
    import torch

# raised by reading sizes from shapes and by filling a model; NotImplementedError stands for weights that were never filled in
_LAYOUT_ERRORS = (NotImplementedError, ValueError, KeyError, IndexError, TypeError, StopIteration, ZeroDivisionError, RuntimeError)
_IDENTIFYING = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "model_index.json")


@dataclass(frozen=True)
class BaseCheckpoint:
    """A base checkpoint on disk. ``kind`` is ``"file"`` (original layout) or ``"folder"`` (diffusers layout).

    ``vae`` and ``text_encoder`` replace its own, or are in files of their own in the first place.
    """

    path: Path
    kind: str
    vae: SeparatePart | None = None
    text_encoder: SeparatePart | None = None

    @property
    def name(self) -> str:
        """The file name with its extension, or the folder's name."""
        return self.path.name

    @cached_property
    def file(self) -> WeightsFile:
        """The weights of a single file."""
        return WeightsFile(self.path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight of a single file."""
        return self.file.shapes

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of a single file."""
        return self.file.metadata

    def tensors(
        self, wanted: Callable[[str], bool], dtype: torch.dtype | None = None, *, channels_last: bool = False
    ) -> dict[str, torch.Tensor]:
        """Weights of a single file: see ``WeightsFile.tensors``."""
        return self.file.tensors(wanted, dtype, channels_last=channels_last)

    def identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 that identifies this base, including a separate VAE and text encoder."""
        own = self.own_identity(cache_dir, full=full)
        parts = {"VAE": self.vae, "text encoder": self.text_encoder}
        named = [f"the {title} {part.identity(cache_dir, full=full)}" for title, part in parts.items() if part is not None]
        return hashlib.sha256(f"{own} with {' and '.join(named)}".encode()).hexdigest() if named else own

    def own_identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 of the file's bytes, or of the folder's configuration and weight files.

        With ``cache_dir``, digests of unchanged files are cached there; ``full`` reads the files again.
        """
        if self.kind == "file":
            return cached_digest(self.path, cache_dir, full)
        digest = hashlib.sha256()
        for part in self._identifying():
            digest.update(f"{part.relative_to(self.path).as_posix()}\0{cached_digest(part, cache_dir, full)}\n".encode())
        return digest.hexdigest()

    def is_hashed(self, cache_dir: Path) -> bool:
        """Whether ``own_identity`` reads no weights, as they were hashed before."""
        return all(has_digest(part, cache_dir) for part in ([self.path] if self.kind == "file" else self._identifying()))

    def _identifying(self) -> list[Path]:
        """The files of a folder that identify it."""
        return [part for part in sorted(self.path.rglob("*")) if part.is_file() and part.relative_to(self.path).parts[0] in _IDENTIFYING]


@contextmanager
def layout_errors(name: str, part: str, title: str) -> Iterator[None]:
    """Turn the errors of missing or misshapen tensors into a UserError. ``name`` is the checkpoint's, ``title`` its family's."""
    try:
        yield
    except _LAYOUT_ERRORS as error:
        if "memory" in str(error):
            raise
        text = str(error).strip()
        cause = "tensors are missing" if isinstance(error, NotImplementedError) else text.splitlines()[-1].strip()[:200] or repr(error)
        raise UserError(
            f"The {part} of {name} is incomplete or has an unusual layout ({cause}).",
            f"Use a complete {title} checkpoint. If you downloaded or merged this one, try that again.",
            kind="checkpoint",
        ) from error
