"""The server takes the prompts that people saved with an earlier release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.comfy_server import Server
from tests.server.test_workflows import server_idle, stock
from tests.tools.workflows.record import FOLDER, OURS

RECORDED = sorted(path for path in FOLDER.glob("*/*.json") if not path.name.endswith(".api.json"))
NAMES = [f"{path.parent.name} {path.stem}" for path in RECORDED]


def prompt_beside(path: Path) -> dict[str, Any]:
    """The prompt that was recorded with a workflow."""
    loaded: dict[str, Any] = json.loads(path.with_suffix(".api.json").read_text(encoding="utf-8"))
    return loaded


def test_a_release_has_every_node() -> None:
    assert RECORDED
    for folder in {path.parent for path in RECORDED}:
        prompt = prompt_beside(folder / "every_node.json")
        assert len([node for node in prompt.values() if node["class_type"].startswith(OURS)]) >= 12


@pytest.mark.parametrize("path", RECORDED, ids=NAMES)
def test_the_server_takes_the_old_prompt(server: Server, shallow_checkpoint: Path, path: Path) -> None:
    stock(server.base, shallow_checkpoint)
    server.queue(prompt_beside(path))  # raises with the server's reasons when a value or an input is no longer allowed
    requests.post(f"{server.url}/queue", json={"clear": True}, timeout=30)
    server.interrupt()
    server_idle(server)
