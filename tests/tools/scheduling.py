"""Which tests run in the same pytest-xdist worker."""

from __future__ import annotations

import re
from pathlib import Path


def worker_group(nodeid: str) -> str:
    """The key of the tests that run in the same worker: the running ComfyUI that the parameters begin with, else the file."""
    path, _, name = nodeid.partition("::")
    running = re.search(r"\[(\d+(?:\.\d+)+[^\]-]*)", name)  # "0.33.0", or "0.33.0 vue light"
    folder = next((part for part in Path(path).parts if part in ("contract", "server", "browser")), None)
    return f"{folder} {running[1]}" if running and folder else path
