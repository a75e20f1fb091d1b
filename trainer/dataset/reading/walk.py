"""All files below a folder. Only hidden files are left out silently."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files.reading import read_regular
from ...core.messages import File, Message
from ..layout import EXPORT_MARKER, HEADER, JOURNAL, MASKS, ROWS, SCHEMA, WORK

_SKIP_FOLDERS = {"__macosx", "$recycle.bin", "node_modules", "@eadir"}
_LARGEST_HEADER = 256 << 20  # bytes


def is_ignored(name: str) -> bool:
    """Whether a folder or file of this name is skipped: hidden files, except waifuc's ``.NAME_meta.json``, and system folders."""
    hidden = name.startswith(".") and (name.startswith("._") or not name.endswith("_meta.json"))
    return hidden or name.lower() in _SKIP_FOLDERS


@dataclass
class WalkResult:
    """``ours``: folders below the root that this program wrote. ``rejected``: folders that cannot be read (path, reason, message)."""

    files: list[Path] = field(default_factory=list)
    ours: list[Path] = field(default_factory=list)
    rejected: list[tuple[Path, str, str]] = field(default_factory=list)


def walk(root: Path, *, skip: Sequence[Path] = (), inside: Sequence[Path] = (), read_ours: bool = False) -> WalkResult:
    """List ``root`` and its sub-folders in the order of their names, then the folders that links lead to.

    ``skip``: folders to leave out. With ``inside``, a link to a folder is followed only to a folder below one of these.
    No folder is read twice. Datasets and exports of this program below ``root`` are left out unless ``read_ours``.
    Raises UserError when ``root`` itself cannot be read.
    """
    found = WalkResult()
    here = root.resolve()
    above = {here, *here.parents}
    passed = {path.resolve() for path in skip}
    roots = [path.resolve() for path in inside]
    seen: set[Path] = set()
    # with real paths, because resolving each path again is slow in deep trees
    folders, links = [(root, here)], list[Path]()
    while folders or links:
        linked = not folders
        if linked:
            folder = links.pop(0)
        else:
            folder, real = folders.pop()
        try:
            if linked:
                real = folder.resolve()
            if real in passed or real in seen:
                continue
            if linked and (real in above or real in folder.parent.resolve().parents):
                found.rejected.append((folder, "unsafe path", "a link to a folder that contains it"))
                continue
            if linked and roots and not any(real == base or base in real.parents for base in roots):
                found.rejected.append((folder, "unsafe path", "a link that leads out of the allowed folders"))
                continue
            seen.add(real)
            entries = _entries(folder)
        except (OSError, RuntimeError) as error:  # no permission, a share that is gone, a loop of links
            cause = getattr(error, "strerror", None) or error
            if folder == root:
                raise UserError(
                    Message("The folder ", File(str(root)), f" cannot be read: {cause}."), "Check its permissions.", kind="dataset"
                ) from error
            found.rejected.append((folder, "unreadable", f"the folder cannot be read: {cause}"))
            continue
        if folder != root and not read_ours and is_own_output(folder):
            found.ours.append(folder)
            continue
        masks = (folder / ROWS).is_file()  # a dataset of ours as source: its masks are not images
        found.files += [folder / name for name, kind in entries if kind == "file"]
        folders += [(folder / name, real / name) for name, kind in reversed(entries) if kind == "folder" and not (masks and name == MASKS)]
        links += [folder / name for name, kind in entries if kind == "link"]
    return found


def is_own_output(folder: Path) -> bool:
    """Whether this program wrote the folder: a dataset, an unfinished dataset, or an export."""
    if (folder / EXPORT_MARKER).is_file() or (folder / WORK / JOURNAL).is_file():
        return True
    try:
        header: Any = json.loads(read_regular(folder / HEADER, _LARGEST_HEADER))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("schema") == SCHEMA


def _entries(folder: Path) -> list[tuple[str, str]]:
    """(name, "file", "folder" or "link" to a folder), sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") and is_ignored(name):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if not is_folder:
                found.append((name, "file"))
            elif not (name.startswith(".") or is_ignored(name)):
                found.append((name, "link" if _is_link(entry) else "folder"))
    return sorted(found)


def _is_link(entry: os.DirEntry[str]) -> bool:
    if sys.platform == "win32":
        return entry.is_symlink() or entry.stat(follow_symlinks=False).st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT  # a junction
    return entry.is_symlink()
