"""Workflows that people saved with an earlier release still load, with every value in the widget that it was typed into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.browser.frontend import Frontend
from tests.browser.test_workflows import ours
from tests.server.comfy_server import Server
from tests.server.test_workflows import server_idle
from tests.tools.workflows.record import FOLDER, OURS

RECORDED = sorted(path for path in FOLDER.glob("*/*.json") if not path.name.endswith(".api.json"))
NAMES = [f"{path.parent.name} {path.stem}" for path in RECORDED]


def prompt_beside(path: Path) -> dict[str, Any]:
    """The prompt that was recorded with a workflow."""
    loaded: dict[str, Any] = json.loads(path.with_suffix(".api.json").read_text(encoding="utf-8"))
    return loaded


def test_a_release_has_all_templates_and_every_node(canvas_server: Server) -> None:
    assert RECORDED
    for folder in {path.parent for path in RECORDED}:
        prompt = prompt_beside(folder / "every_node.json")
        assert len([node for node in prompt.values() if node["class_type"].startswith(OURS)]) >= 12


@pytest.mark.parametrize("path", RECORDED, ids=NAMES)
def test_it_loads_and_asks_for_the_same(frontend: Frontend, canvas_server: Server, path: Path) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    before = len(frontend.problems)
    seen = frontend.load(recorded, path.stem)
    assert [node["type"] for node in seen["nodes"] if node["missing"]] == []
    assert seen["dangling"] == []
    assert seen["links"] == len(recorded["links"])
    assert ours(frontend.problems[before:]) == []

    then, now = prompt_beside(path), frontend.prompt()
    assert now.keys() == then.keys()
    for number, node in then.items():
        assert now[number]["class_type"] == node["class_type"]
        kept = {name: now[number]["inputs"].get(name) for name in node["inputs"]}
        assert kept == node["inputs"], f"{node['class_type']}: a value went to another widget, or its widget is gone"


@pytest.mark.parametrize("path", RECORDED, ids=NAMES)
def test_the_server_takes_the_old_prompt(canvas_server: Server, path: Path) -> None:
    canvas_server.queue(prompt_beside(path))  # raises with the server's reasons when a value or an input is no longer allowed
    requests.post(f"{canvas_server.url}/queue", json={"clear": True}, timeout=30)
    canvas_server.interrupt()
    server_idle(canvas_server)
