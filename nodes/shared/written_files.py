"""Files that nodes wrote into the user's folders: if one is deleted, its node runs again with the next queue and writes it again.

ComfyUI caches a node's result by the node's fingerprint, which it asks for before the node runs. The fingerprint here changes only when a
file has been deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _WrittenFiles:
    """The files under one name. ``deletions`` counts how often one was missing, ``fingerprint`` is that count as last returned."""

    files: set[Path] = field(default_factory=set)
    deletions: int = 0
    fingerprint: int = 0


_WRITTEN: dict[tuple[str, str], _WrittenFiles] = {}  # of this process only; ComfyUI's cache does not outlive it either


def files_fingerprint(node: str, name: str | None) -> str:
    """Changes when a file that ``node`` wrote under ``name`` is missing; None means any name."""
    if name is None:
        return "".join(f"{key[1]} {each} " for key in sorted(_WRITTEN) if key[0] == node and (each := files_fingerprint(*key)))
    written = _WRITTEN.get((node, name))
    if written is None:
        return ""
    written.fingerprint = written.deletions + (not all(file.is_file() for file in written.files))
    return str(written.fingerprint or "")


def record_file(node: str, name: str, file: Path) -> None:
    """Call it when ``node`` has written ``file``, or found it already written."""
    written = _WRITTEN.setdefault((node, name), _WrittenFiles())
    written.files = {each for each in written.files if each.is_file()} | {file}
    written.deletions = written.fingerprint
