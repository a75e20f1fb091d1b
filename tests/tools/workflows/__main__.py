"""Writes workflows/*.json and subgraphs/*.json: ``python -m tests.tools.workflows http://127.0.0.1:8188``.

The server must hold what the graphs name: the checkpoint, the LoRA and the example photo (empty files will do).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests

from .blueprints import BLUEPRINTS
from .graphs import GRAPHS

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Draw every graph and blueprint."""
    info = requests.get(f"{sys.argv[1].rstrip('/')}/object_info", timeout=60).json()
    for name, draw in GRAPHS.items():
        write("workflows", name, draw(info).draw())
    for name, make in BLUEPRINTS.items():
        write("subgraphs", name, make(info).draw(name))
    return 0


def write(folder: str, name: str, graph: dict[str, Any]) -> None:
    """Write one graph."""
    (ROOT / folder).mkdir(exist_ok=True)
    text = json.dumps(graph, indent=1, ensure_ascii=False) + "\n"
    (ROOT / folder / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
    print(f"{folder}/{name}: {len(graph['nodes'])} nodes, {len(graph['links'])} links")


if __name__ == "__main__":
    sys.exit(main())
