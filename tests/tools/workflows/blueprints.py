"""Subgraph blueprints: groups of nodes that ComfyUI's node library offers as one node. ``python -m tests.tools.workflows`` writes them.

The format is that of ComfyUI's own blueprints: a graph of one node, whose type is the subgraph in ``definitions``. Sockets of the node are
links from and to the subgraph's two border nodes; its widgets are proxies of inner ones.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .canvas import Canvas, Group, Node, Output
from .object_info import ObjectInfo
from .parts import train_on_checkpoint

_INPUT_NODE, _OUTPUT_NODE = -10, -20  # ids that the frontend reserves for the borders of a subgraph
_SPACE = uuid.UUID("b0a1a3de-2f4c-4d5e-8f0e-0d6c1c7b9a44")  # makes ids from names
_SLOT = 20  # pixels of a socket's row


@dataclass(frozen=True)
class Blueprint:
    """Nodes that become one. ``inputs`` and ``outputs`` are its sockets by name, ``widgets`` those inner widgets that it shows."""

    description: str
    nodes: Canvas
    inputs: Mapping[str, Sequence[tuple[Node, str]]]
    outputs: Mapping[str, Output]
    widgets: Sequence[tuple[Node, str]]

    def draw(self, name: str) -> dict[str, Any]:
        """The blueprint in the frontend's format."""
        graph = self.nodes.draw()
        inner = {node["id"]: node for node in graph["nodes"]}
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links = [dict(zip(keys, link, strict=True)) for link in graph["links"]]
        right = max(node["pos"][0] + node["size"][0] for node in inner.values())
        inputs = [self._input(name, slot, inner, links) for slot, name in enumerate(self.inputs)]
        outputs = [self._output(name, slot, inner, links, right + 100) for slot, name in enumerate(self.outputs)]
        subgraph = {
            "id": _id(name),
            "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": len(inner), "lastLinkId": len(links), "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": name,
            "inputNode": {"id": _INPUT_NODE, "bounding": [-200, 0, 130, 40 + _SLOT * len(inputs)]},
            "outputNode": {"id": _OUTPUT_NODE, "bounding": [right + 80, 0, 130, 40 + _SLOT * len(outputs)]},
            "inputs": inputs,
            "outputs": outputs,
            "widgets": [],
            "nodes": graph["nodes"],
            "groups": [],
            "links": links,
            "extra": {"BlueprintDescription": self.description},
            "category": "AnimeLoRA",
            "description": self.description,
        }
        outer = {
            "id": len(inner) + 1,
            "type": subgraph["id"],
            "pos": [0, 0],
            "size": [400, 80 + 27 * len(self.widgets) + _SLOT * max(len(inputs), len(outputs))],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [{"name": slot["name"], "type": slot["type"], "link": None} for slot in inputs],
            "outputs": [{"name": slot["name"], "type": slot["type"], "links": None} for slot in outputs],
            "properties": {"proxyWidgets": [[str(node.id), widget] for node, widget in self.widgets]},
            "widgets_values": [],
            "title": name,
        }
        return {
            "revision": 0,
            "last_node_id": outer["id"],
            "last_link_id": 0,
            "nodes": [outer],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [subgraph]},
            "extra": {"BlueprintDescription": self.description},
        }

    def _input(self, name: str, slot: int, inner: Mapping[int, dict[str, Any]], links: list[dict[str, Any]]) -> dict[str, Any]:
        """An input socket, with its links into the subgraph; they are added to ``links`` and to the nodes."""
        made = []
        for node, socket in self.inputs[name]:
            sockets = inner[node.id]["inputs"]
            index = next(number for number, each in enumerate(sockets) if each["name"] == socket)
            sockets[index]["link"] = len(links) + 1
            made.append(_link(len(links) + 1, (_INPUT_NODE, slot), (node.id, index), sockets[index]["type"]))
            links.append(made[-1])
        return _socket(name, made, [-90, 20 + _SLOT * slot])

    def _output(self, name: str, slot: int, inner: Mapping[int, dict[str, Any]], links: list[dict[str, Any]], x: int) -> dict[str, Any]:
        """An output socket, with its link out of the subgraph."""
        source = self.outputs[name]
        sockets = inner[source.node.id]["outputs"]
        index = next(number for number, each in enumerate(sockets) if each["name"] == source.name)
        made = _link(len(links) + 1, (source.node.id, index), (_OUTPUT_NODE, slot), sockets[index]["type"])
        sockets[index]["links"] = [*(sockets[index]["links"] or []), made["id"]]
        links.append(made)
        return _socket(name, [made], [x, 20 + _SLOT * slot])


def _link(number: int, origin: tuple[int, int], target: tuple[int, int], kind: str) -> dict[str, Any]:
    return {
        **{"id": number, "origin_id": origin[0], "origin_slot": origin[1]},
        **{"target_id": target[0], "target_slot": target[1], "type": kind},
    }


def _socket(name: str, links: Sequence[Mapping[str, Any]], pos: list[int]) -> dict[str, Any]:
    kind = links[0]["type"]
    return {"id": _id(f"{name} {kind} {pos}"), "name": name, "type": kind, "linkIds": [link["id"] for link in links], "pos": pos}


def _id(name: str) -> str:
    return str(uuid.uuid5(_SPACE, name))


def train_a_style(info: ObjectInfo) -> Blueprint:
    """Dataset Prep and Train LoRA as one node."""
    c = Canvas("blueprint: train a style", info)
    prep = c.node("AnimeLoRA_DatasetPrep", tall=420)
    train = train_on_checkpoint(c, dataset=prep["dataset"], wide=360)
    c.row(Group("", [[prep], [train]]))
    return Blueprint(
        "Prepares a folder of images and trains a LoRA on them.",
        c,
        inputs={"images": [(prep, "images")], "captions": [(prep, "captions")], "options": [(train, "options")]},
        outputs={"lora": train["lora"], "samples": train["samples"], "contact_sheet": prep["contact_sheet"]},
        widgets=[
            *((prep, widget) for widget in ("folder", "trigger_word", "class_description", "resolution")),
            *((train, widget) for widget in ("checkpoint", "name", "epochs", "rank", "learning_rate", "validation_prompts")),
        ],
    )


def photo_to_anime(info: ObjectInfo) -> Blueprint:
    """Load LoRA and Anime Img2Img as one node."""
    c = Canvas("blueprint: photo to anime", info)
    loaded = c.node("AnimeLoRA_LoadLora", wide=320)
    repaint = c.node("AnimeLoRA_AnimeImg2Img", model=loaded["model"], clip=loaded["clip"], trigger_words=loaded["trigger_words"], wide=380)
    c.row(Group("", [[loaded], [repaint]]))
    return Blueprint(
        "Repaints a photo in the style of a LoRA.",
        c,
        inputs={
            "model": [(loaded, "model")],
            "clip": [(loaded, "clip")],
            "vae": [(repaint, "vae")],
            "image": [(repaint, "image")],
            "lora": [(loaded, "lora")],
        },
        outputs={"image": repaint["image"], "before_after": repaint["before_after"]},
        widgets=[
            *((loaded, widget) for widget in ("lora_name", "strength_model")),
            *((repaint, widget) for widget in ("positive", "negative", "strength", "guidance", "steps", "seed")),
        ],
    )


BLUEPRINTS: dict[str, Callable[[ObjectInfo], Blueprint]] = {
    "Train an anime style": train_a_style,
    "Photo to anime with a LoRA": photo_to_anime,
}
"""File names in subgraphs/, which are the names in ComfyUI's node library."""
