"""Which tests run in the same pytest-xdist worker."""

from __future__ import annotations

import re
from pathlib import Path

_VERSION = re.compile(r"\[(\d+(?:\.\d+)+)")  # of the ComfyUI that a test's parameters begin with: "0.33.0-tiny", "0.33.0 vue light"


def worker_group(nodeid: str) -> str:
    """The key of the tests that run in the same worker: the version of the running ComfyUI that they share, else the file."""
    path, _, name = nodeid.partition("::")
    shares_server = {"server", "browser"} & set(Path(path).parts)
    version = _VERSION.search(name)
    if version and shares_server:
        return f"ComfyUI {version[1]}"
    return f"described {version[1]}" if version and "contract" in Path(path).parts else path
