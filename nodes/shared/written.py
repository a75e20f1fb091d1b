"""Files that nodes wrote among the user's own: when one is deleted, its node runs again with the next queue and writes it again.

ComfyUI keeps a node's result under the node's fingerprint, which is asked for before the node runs. So each name has a mark, which changes
only when a file is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _Written:
    """What was written under one name. ``losses`` counts how often a file was gone, ``given`` is the count of the last mark."""

    files: set[Path] = field(default_factory=set)
    losses: int = 0
    given: int = 0


_WRITTEN: dict[tuple[str, str], _Written] = {}  # only of this process: where it has written nothing, ComfyUI keeps no result either


def mark(node: str, name: str | None) -> str:
    """Stays as it is until a file is gone that ``node`` wrote under ``name``; of all names where None stands for any of them."""
    if name is None:
        return "".join(f"{key[1]} {each} " for key in sorted(_WRITTEN) if key[0] == node and (each := mark(*key)))
    written = _WRITTEN.get((node, name))
    if written is None:
        return ""
    written.given = written.losses + (not all(file.is_file() for file in written.files))
    return str(written.given or "")


def remember(node: str, name: str, file: Path) -> None:
    """Call it when ``node`` has just written ``file``, or found it there."""
    written = _WRITTEN.setdefault((node, name), _Written())
    written.files = {each for each in written.files if each.is_file()} | {file}
    written.losses = written.given
