"""Which tests run in the same pytest-xdist worker."""

from __future__ import annotations

import re
from pathlib import Path


def worker_group(nodeid: str) -> str:
    """The key of the tests that run in the same worker: the running ComfyUI that the parameters begin with, else the file."""
    path, _, name = nodeid.partition("::")
    running = re.search(r"\[(\d+(?:\.\d+)+[^\]-]*)", name)  # "0.33.0", or "0.33.0 vue light"
    folder = Path(path).parent.name
    return f"{folder} {running[1]}" if running and folder in ("contract", "server", "browser") else path
