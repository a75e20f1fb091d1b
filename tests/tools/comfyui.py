"""The ComfyUI checkouts on this machine."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

NO_COMFYUI = "no ComfyUI: set COMFYUI_PATH and COMFYUI_PYTHON, or put one with its venv into ~/ComfyUI"
_PYTHON = "Scripts/python.exe" if os.name == "nt" else "bin/python"


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI checkout, and the interpreter that runs it."""

    path: Path
    python: Path

    @property
    def version(self) -> str:
        """For example ``0.3.64``."""
        text = (self.path / "comfyui_version.py").read_text(encoding="utf-8")
        return text.split("__version__", 1)[1].split('"')[1]


def find_comfyui() -> ComfyUI | None:
    """COMFYUI_PATH with COMFYUI_PYTHON, else ``~/ComfyUI``. Its interpreter is in ``venv`` or ``.venv`` inside it, else this one."""
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (path / "main.py").is_file():
        return None
    candidates = [path / folder / _PYTHON for folder in ("venv", ".venv")]
    if named := os.environ.get("COMFYUI_PYTHON"):
        candidates = [Path(named)]
    python = next((candidate for candidate in candidates if candidate.is_file()), None)
    if python is None and named is None and "COMFYUI_PATH" in os.environ:
        python = Path(sys.executable)
    return ComfyUI(path, python) if python else None


def find_comfyuis() -> list[ComfyUI]:
    """Every ComfyUI to test with, the newest first: COMFYUI_PATHS (separated as PATH is), else ``find_comfyui`` and ``~/ComfyUI-*``."""
    named = os.environ.get("COMFYUI_PATHS")
    newest = find_comfyui()
    if named:
        folders = [Path(part) for part in named.split(os.pathsep) if part]
    else:
        folders = [newest.path] if newest else []
        if "COMFYUI_PATH" not in os.environ:
            folders += sorted(Path.home().glob("ComfyUI-*"))
    found = []
    for folder in folders:
        pythons = [path for name in ("venv", ".venv") if (path := folder / name / _PYTHON).is_file()]
        if newest is not None and folder == newest.path:
            found.append(newest)
        elif (folder / "main.py").is_file() and (pythons or named):
            found.append(ComfyUI(folder, pythons[0] if pythons else Path(sys.executable)))
    return found
