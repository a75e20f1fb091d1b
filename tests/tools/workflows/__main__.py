"""Writes workflows/*.json: ``python -m tests.tools.workflows http://127.0.0.1:8188``.

The server must hold what the graphs name: the checkpoint, the LoRA and the example photo (empty files will do).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import requests

from .graphs import GRAPHS

FOLDER = Path(__file__).resolve().parents[3] / "workflows"


def main() -> int:
    """Draw every graph."""
    info = requests.get(f"{sys.argv[1].rstrip('/')}/object_info", timeout=60).json()
    FOLDER.mkdir(exist_ok=True)
    for name, draw in GRAPHS.items():
        graph = draw(info).draw()
        text = json.dumps(graph, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(graph['nodes'])} nodes, {len(graph['links'])} links")
    return 0


if __name__ == "__main__":
    sys.exit(main())
