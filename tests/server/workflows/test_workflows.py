"""A real server knows every node, widget and link of the example workflows, and accepts them as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.comfy_server import ROOT, Server
from tests.server.templates import install_model_files, shipped_workflow
from tests.tools.workflows.api import api_prompt, problems
from tests.tools.workflows.blueprints import BLUEPRINTS
from tests.tools.workflows.graphs import GRAPHS

ANIMA = "10 Train an Anima style"


@pytest.fixture(scope="session")
def info(server: Server, shallow_checkpoint: Path) -> dict[str, Any]:
    """The server's description of its nodes, with every file that the graphs name in its menus."""
    install_model_files(server.base, shallow_checkpoint)
    return dict(server.get("/object_info"))


@pytest.mark.parametrize("name", GRAPHS)
def test_server_knows_every_node_widget_and_link(info: dict[str, Any], name: str) -> None:
    assert list(problems(shipped_workflow(name), info)) == []


@pytest.mark.parametrize("name", GRAPHS)
def test_workflow_file_matches_its_description(info: dict[str, Any], name: str) -> None:
    drawn, kept = GRAPHS[name](info).draw(), shipped_workflow(name)
    assert drawn == kept, "draw it again: python -m tests.tools.workflows"


@pytest.mark.parametrize("name", GRAPHS)
def test_server_accepts_the_workflow_as_a_prompt(server: Server, info: dict[str, Any], name: str) -> None:
    prompt_id = server.queue(api_prompt(shipped_workflow(name), info))  # raises with the server's reasons if it is refused
    server.clear_queue()
    assert prompt_id


def test_template_browser_lists_the_workflows(server: Server) -> None:
    assert set(server.get("/workflow_templates")["animelora"]) == set(GRAPHS)
    for name in GRAPHS:
        answer = requests.get(f"{server.url}/api/workflow_templates/animelora/{name}.json", timeout=30)
        assert answer.json() == shipped_workflow(name)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_file_matches_its_description(info: dict[str, Any], name: str) -> None:
    kept = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    assert BLUEPRINTS[name](info).draw(name) == kept, "draw it again: python -m tests.tools.workflows"


def test_node_library_offers_the_blueprints(server: Server) -> None:
    answer = requests.get(f"{server.url}/global_subgraphs", timeout=30)
    if answer.status_code == 404:
        pytest.skip("this ComfyUI has no blueprints of packs")
    offered = {entry["name"] for entry in answer.json().values() if entry["info"]["node_pack"].endswith("animelora")}
    assert offered == set(BLUEPRINTS)


def test_anima_template_shows_the_values_of_its_preset(server: Server, info: dict[str, Any]) -> None:
    prompt = api_prompt(shipped_workflow(ANIMA), info)
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "AnimeLoRA_TrainLora"]
    expected = server.get("/animelora/presets")[inputs["preset"]]["AnimeLoRA_TrainLora"]
    assert len(expected) > 5
    assert {name: inputs[name] for name in expected} == expected


def test_anima_template_has_the_addresses_and_sampling_of_comfyuis_own(server: Server) -> None:
    answer = requests.get(f"{server.url}/templates/image_anima_base_v1.json", timeout=30)
    if answer.status_code == 404:
        pytest.skip("this ComfyUI has no template for Anima")
    theirs = answer.json()
    nodes = [*theirs["nodes"], *(node for part in theirs["definitions"]["subgraphs"] for node in part["nodes"])]
    ours = shipped_workflow(ANIMA)["nodes"]
    assert models(ours) == models(nodes)
    assert settings(ours, "CLIPLoader") == settings(nodes, "CLIPLoader")
    assert settings(ours, "KSampler")[2:] == settings(nodes, "KSampler")[2:]  # all but the seed


def models(nodes: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The files that the nodes' loaders download, by name."""
    loaders = ("UNETLoader", "CLIPLoader", "VAELoader")
    return {model["name"]: model for node in nodes if node["type"] in loaders for model in node["properties"]["models"]}


def settings(nodes: list[dict[str, Any]], kind: str) -> list[Any]:
    """The widget values of the only node of a kind."""
    (values,) = [node["widgets_values"] for node in nodes if node["type"] == kind]
    return list(values)
