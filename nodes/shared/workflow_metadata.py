"""Edit the workflow of a queued prompt, which ComfyUI stores in the images that the prompt writes."""

from __future__ import annotations

from typing import Any


def set_property(workflow: Any, node_id: str, name: str, value: Any) -> None:
    """Set a property of a node in place. ``node_id`` is ComfyUI's: ``12:5`` is node 5 in the subgraph node 12.

    Does nothing when there is no such node: the workflow comes from the browser, or from another program.
    """
    properties = _properties(workflow, node_id)
    if properties is not None:
        properties[name] = value


def take_property(workflow: Any, node_id: str, name: str) -> Any:
    """Remove a property of a node in place, and return its value; None if it has none."""
    properties = _properties(workflow, node_id)
    return None if properties is None else properties.pop(name, None)


def _properties(workflow: Any, node_id: str) -> dict[str, Any] | None:
    nodes = _list(workflow, "nodes")
    subgraphs = _list(_get(workflow, "definitions"), "subgraphs")
    *outer, last = node_id.split(":")
    for number in outer:
        kind = _get(_find(nodes, number), "type")
        nodes = _list(next((each for each in subgraphs if _get(each, "id") == kind), None), "nodes")
    node = _find(nodes, last)
    properties = node.setdefault("properties", {}) if node is not None else None
    return properties if isinstance(properties, dict) else None


def _find(nodes: list[Any], number: str) -> dict[str, Any] | None:
    return next((node for node in nodes if isinstance(node, dict) and str(node.get("id")) == number), None)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: Any, key: str) -> list[Any]:
    found = _get(value, key)
    return found if isinstance(found, list) else []
