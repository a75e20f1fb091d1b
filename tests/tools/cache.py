"""Where tests keep large files between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where large test files are kept: ANIMELORA_TEST_CACHE, else the user's cache folder."""
    if named := os.environ.get("ANIMELORA_TEST_CACHE"):
        return Path(named)
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "animelora-tests"
