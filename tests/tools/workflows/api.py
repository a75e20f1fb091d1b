"""Converts graphs from the frontend's format to the format of ``/prompt``, and finds their errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .object_info import ObjectInfo, choices, inputs_of, is_widget, options, outputs_of, socket_type, widget_names

NOTES = ("MarkdownNote", "Note")
_TYPES: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}


def api_prompt(graph: dict[str, Any], info: ObjectInfo) -> dict[str, dict[str, Any]]:
    """The graph in API format."""
    sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        names = widget_names(info[node["type"]])
        inputs = {name: value for name, value in zip(names, node["widgets_values"], strict=True) if name is not None}
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def problems(graph: dict[str, Any], info: ObjectInfo) -> Iterator[str]:
    """The parts of a graph that the server's description does not allow."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        if node["type"] not in info:
            yield f"{node['type']} is not a node of this server"
            continue
        yield from _widget_problems(node, info[node["type"]])
        yield from _socket_problems(node, info[node["type"]])
    for number, origin, origin_slot, target, target_slot, kind in graph["links"]:
        source, sink = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        if number not in (source["links"] or []) or sink["link"] != number:
            yield f"link {number} is not known at both ends"
        if source["type"] != sink["type"] and "*" not in (source["type"], sink["type"]):
            yield f"link {number} joins {source['type']} with {sink['type']}"
        if kind != sink["type"]:
            yield f"link {number} says {kind}, its target says {sink['type']}"


def _widget_problems(node: dict[str, Any], info: Any) -> Iterator[str]:
    names = list(widget_names(info))
    if len(names) != len(node["widgets_values"]):
        yield f"{node['type']} has {len(names)} widgets, the graph {len(node['widgets_values'])} values"
        return
    specs = inputs_of(info)
    for name, value in zip(names, node["widgets_values"], strict=True):
        where = f"{node['type']}.{name} = {value!r}"
        if name is None:
            if value not in ("fixed", "randomize", "increment", "decrement", "image"):
                yield f"{node['type']} has {value!r} in an added widget"
            continue
        menu = choices(specs[name])
        if menu is not None:
            if value not in menu:
                yield f"{where} is not on the menu"
            continue
        kind = specs[name][0]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            yield f"{where} is not {kind}"
        elif kind in ("INT", "FLOAT"):
            low, high = options(specs[name]).get("min", value), options(specs[name]).get("max", value)
            if not low <= value <= high:
                yield f"{where} is not between {low} and {high}"


def _socket_problems(node: dict[str, Any], info: Any) -> Iterator[str]:
    outputs = [] if info["output_node"] and not node["outputs"] else outputs_of(info)
    if [(o["name"], o["type"]) for o in node["outputs"]] != [(o["name"], o["type"]) for o in outputs]:
        yield f"{node['type']} has other outputs than the graph"
    specs = inputs_of(info)
    linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
    for slot in node["inputs"]:
        if slot["name"] not in specs:
            yield f"{node['type']} has no input {slot['name']}"
        elif slot["type"] != socket_type(specs[slot["name"]]):
            yield f"{node['type']}.{slot['name']} is {socket_type(specs[slot['name']])}, the graph says {slot['type']}"
    for name in info["input"].get("required", {}):
        if not is_widget(specs[name]) and name not in linked:
            yield f"{node['type']}.{name} is not connected"
