"""The example graphs as files, without ComfyUI."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in FILES]
TITLE = 30  # a node's title lies above its position

Graph = dict[str, Any]
Box = tuple[float, float, float, float]


@pytest.fixture(params=FILES, ids=NAMES)
def graph(request: pytest.FixtureRequest) -> Graph:
    """Each graph in turn."""
    loaded: Graph = json.loads(request.param.read_text(encoding="utf-8"))
    return loaded


def box(node: dict[str, Any]) -> Box:
    """Left, top, right, bottom with the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share any area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_the_promised_graphs_are_there() -> None:
    for word in (
        "First LoRA",
        "Photo to anime",
        "Characters and styles",
        "Guidance",
        "ControlNet",
        "epochs",
        "Export",
        "Zero-download",
        "App",
        "Anima",
    ):
        assert any(word in name for name in NAMES), word


def test_only_one_folder_offers_templates() -> None:
    offered = [name for name in ("example_workflows", "example", "examples", "workflow", "workflows") if (ROOT / name).is_dir()]
    assert offered == ["workflows"]


def test_links_lead_from_a_node_to_a_node(graph: Graph) -> None:
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    named: list[int] = []
    for number, origin, origin_slot, target, target_slot, _kind in graph["links"]:
        named.append(number)
        assert number in nodes[origin]["outputs"][origin_slot]["links"]
        assert nodes[target]["inputs"][target_slot]["link"] == number
    seen_in = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    seen_out = [link for node in nodes.values() for slot in node["outputs"] for link in slot["links"] or []]
    assert sorted(seen_in) == sorted(seen_out) == sorted(named)


def test_nodes_do_not_overlap(graph: Graph) -> None:
    for a, b in itertools.combinations(graph["nodes"], 2):
        assert not overlap(box(a), box(b)), (a["type"], b["type"])


def test_every_node_but_the_note_stands_in_one_group(graph: Graph) -> None:
    frames = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in graph["groups"])]
    for a, b in itertools.combinations(frames, 2):
        assert not overlap(a, b)
    for node in graph["nodes"]:
        left, top, right, bottom = box(node)
        around = [f for f in frames if f[0] <= left and f[1] <= top and f[2] >= right and f[3] >= bottom]
        assert len(around) == (0 if node["type"] == "MarkdownNote" else 1), node["type"]


def test_a_note_stands_first(graph: Graph) -> None:
    first = min(graph["nodes"], key=lambda node: (node["pos"][1] // 100, node["pos"][0]))
    assert first["type"] == "MarkdownNote"
    assert first["widgets_values"][0].startswith("# ")


def test_order_follows_the_links(graph: Graph) -> None:
    order = {node["id"]: node["order"] for node in graph["nodes"]}
    assert all(order[link[1]] < order[link[3]] for link in graph["links"])


def test_the_first_lora_is_the_reference_run() -> None:
    graph = json.loads((ROOT / "workflows" / "1 First LoRA from a folder.json").read_text(encoding="utf-8"))
    train = next(node for node in graph["nodes"] if node["type"] == "AnimeLoRA_TrainLora")
    epochs, rank, rate, batch, accumulation, prompt, every = train["widgets_values"][2:9]
    assert (epochs, rank, rate, batch, accumulation) == (5, 16, 1e-4, 1, 2)
    assert prompt == "myAnimeStyleToken anime_face girl, high quality"
    assert every == 500


def test_photo_to_anime_shows_both_strengths() -> None:
    graph = json.loads((ROOT / "workflows" / "2 Photo to anime.json").read_text(encoding="utf-8"))
    strengths = [node["widgets_values"][2] for node in graph["nodes"] if node["type"] == "AnimeLoRA_AnimeImg2Img"]
    assert strengths == [0.65, 0.8]


def test_guidance_is_compared_at_three_values() -> None:
    graph = json.loads((ROOT / "workflows" / "4 Guidance compared.json").read_text(encoding="utf-8"))
    compared = [node["widgets_values"] for node in graph["nodes"] if node["type"] == "AnimeLoRA_StyleCompare"]
    assert compared
    assert all("5, 7.5, 10" in values for values in compared)


def test_the_tour_names_nothing_that_must_be_downloaded() -> None:
    graph = json.loads((ROOT / "workflows" / "8 Zero-download tour.json").read_text(encoding="utf-8"))
    kinds = {node["type"] for node in graph["nodes"]}
    assert not kinds & {"CheckpointLoaderSimple", "LoadImage", "VAELoader", "ControlNetLoader"}
    assert not any("models" in node["properties"] for node in graph["nodes"])


def test_the_anima_template_links_to_each_of_its_files() -> None:
    graph = json.loads((ROOT / "workflows" / "10 Train an Anima style.json").read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in graph["nodes"]}
    note, linked = nodes["MarkdownNote"]["widgets_values"][0], nodes["AnimeLoRA_TrainLora"]["properties"]["models"]
    folders = {"UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae"}
    assert len(linked) == len(folders)
    for loader, folder in folders.items():
        (model,) = nodes[loader]["properties"]["models"]
        assert model in linked
        assert (model["name"], model["directory"]) == (nodes[loader]["widgets_values"][0], folder)
        assert f"[{model['name']}]({model['url']})" in note
        assert f"models/{folder}" in note
