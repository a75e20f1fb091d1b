"""The nodes of the pack as a real ComfyUI describes them to the browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.tools.comfyui import ComfyUI

ROOT = Path(__file__).resolve().parents[3]


def describe_nodes(comfyui: ComfyUI, base: Path) -> dict[str, Any]:
    """``nodes`` as ``/object_info`` gives them, and what loading them did; ``base`` is the folder for ComfyUI's input and output."""
    script = Path(__file__).with_name("describe_nodes.py")
    done = subprocess.run(
        [str(comfyui.python), str(script), str(comfyui.path), str(ROOT), str(base)], capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("DESCRIPTION ")]
    assert lines, done.stdout[-1000:] + done.stderr[-4000:]
    return dict(json.loads(lines[0].removeprefix("DESCRIPTION ")))
