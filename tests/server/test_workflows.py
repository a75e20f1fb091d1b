"""The example graphs against a real server: every node, widget and link is one it knows, and it takes them as prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.comfy_server import ROOT, Server
from tests.server.conftest import link, portrait
from tests.tools.workflows.api import api_prompt, problems
from tests.tools.workflows.graphs import GRAPHS
from tests.tools.workflows.parts import CHECKPOINT, CONTROLNET, LORA_FILE


@pytest.fixture(scope="session")
def info(server: Server, shallow_checkpoint: Path) -> dict[str, Any]:
    """The server's description of its nodes, with everything on the menus that the graphs name."""
    stock(server.base, shallow_checkpoint)
    return dict(server.get("/object_info"))


def stock(base: Path, checkpoint: Path) -> None:
    """Put files of the right names where the graphs look for them; nothing reads their content here."""
    for folder, name in (("checkpoints", CHECKPOINT), ("controlnet", CONTROLNET), ("loras", LORA_FILE)):
        place = base / "models" / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            link(checkpoint, place)
    portrait(96, 3).save(base / "input" / "example.png")


def stored(name: str) -> dict[str, Any]:
    """A graph as the pack ships it."""
    loaded: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", GRAPHS)
def test_the_server_knows_every_node_widget_and_link(info: dict[str, Any], name: str) -> None:
    assert list(problems(stored(name), info)) == []


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_is_what_its_description_draws(info: dict[str, Any], name: str) -> None:
    drawn, kept = GRAPHS[name](info).draw(), stored(name)
    assert drawn == kept, "draw it again: python -m tests.tools.workflows"


@pytest.mark.parametrize("name", GRAPHS)
def test_the_server_takes_it_as_a_prompt(server: Server, info: dict[str, Any], name: str) -> None:
    prompt_id = server.queue(api_prompt(stored(name), info))  # raises with the server's reasons when it is refused
    requests.post(f"{server.url}/queue", json={"clear": True}, timeout=30)
    server.interrupt()
    server_idle(server)
    assert prompt_id


def server_idle(server: Server) -> None:
    """Wait until nothing runs any more."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        queue = server.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        server.interrupt()
        time.sleep(0.3)
    pytest.fail("the prompt did not end")


def test_the_template_browser_offers_them(server: Server) -> None:
    assert set(server.get("/workflow_templates")["animelora"]) == set(GRAPHS)
    for name in GRAPHS:
        answer = requests.get(f"{server.url}/api/workflow_templates/animelora/{name}.json", timeout=30)
        assert answer.json() == stored(name)
