"""Notices a base checkpoint that is deleted, moved or replaced while a run still has to read from it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..core.errors import UserError
from ..families import BaseCheckpoint


class CheckpointGuard:
    """Remembers sizes and dates of the files of ``checkpoint``. ``identity`` is the checkpoint's; ``folder`` caches identities."""

    def __init__(self, checkpoint: BaseCheckpoint, folder: Path) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        self._stamps = _stamps(checkpoint)
        self.identity = checkpoint.identity(folder)

    @property
    def is_missing(self) -> bool:
        """Whether a file is gone."""
        return not all(file.exists() for file in _files(self._checkpoint).values())

    def require_unchanged(self) -> None:
        """Raises UserError when the checkpoint, its VAE or its text encoder was deleted, moved or replaced since the run began."""
        files = _files(self._checkpoint)
        missing = next((what for what, file in files.items() if not file.exists()), "")
        if missing:
            raise UserError(f"{missing} was deleted or moved while the run needed it.", "Put it back, and start again.", kind="checkpoint")
        if _stamps(self._checkpoint) != self._stamps and self._checkpoint.identity(self._folder) != self.identity:
            raise UserError(
                f"{' or '.join(files)} was replaced by another file while the run needed it.",
                "Put the first one back, and start again.",
                kind="checkpoint",
            )


def _files(checkpoint: BaseCheckpoint) -> dict[str, Path]:
    """The files that stand for a checkpoint, its VAE and its text encoder, by what messages call them."""
    files = {f"The checkpoint {checkpoint.path}": checkpoint.path if checkpoint.kind == "file" else checkpoint.path / "model_index.json"}
    for title, part in (("VAE", checkpoint.vae), ("text encoder", checkpoint.text_encoder)):
        if part is not None:
            files[f"The {title} {part.path}"] = part.path / "config.json" if part.is_folder else part.path
    return files


def _stamps(checkpoint: BaseCheckpoint) -> list[tuple[int, int]]:
    """Size and date of each file; fewer where one is missing."""
    stamps = []
    for file in _files(checkpoint).values():
        with suppress(OSError):
            status = file.stat()
            stamps.append((status.st_size, status.st_mtime_ns))
    return stamps
