"""Workflows saved with an earlier release still load, with every value in its widget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.frontend import Frontend
from tests.browser.screens import pack_errors
from tests.server.comfy_server import Server
from tests.tools.parameters import mark_long
from tests.tools.workflows.recorded import NAMES, RECORDED, prompt_beside

FURTHER = [path for path in RECORDED if not path.stem.startswith(("01_", "every_node"))]  # the server accepts all (tests/server/workflows)


@pytest.mark.parametrize("path", mark_long(RECORDED, *FURTHER), ids=NAMES)
def test_recorded_workflow_loads_and_queues_the_same_prompt(frontend: Frontend, canvas_server: Server, path: Path) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    before = len(frontend.problems)
    seen = frontend.load(recorded, path.stem)
    assert [node["type"] for node in seen["nodes"] if node["missing"]] == []
    assert seen["dangling"] == []
    assert seen["links"] == len(recorded["links"])
    assert pack_errors(frontend.problems[before:]) == []

    then, now = prompt_beside(path), frontend.prompt()
    assert now.keys() == then.keys()
    for number, node in then.items():
        assert now[number]["class_type"] == node["class_type"]
        kept = {name: now[number]["inputs"].get(name) for name in node["inputs"]}
        assert kept == node["inputs"], f"{node['class_type']}: a value went to another widget, or its widget is gone"
