"""What Train LoRA will get from the nodes before it, read from a graph that has not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..inputs.socket_types import DatasetHandle, TrainOptions
from .prepared_datasets import find_prepared

Graph = Mapping[str, Any]
"""A graph in ComfyUI's API format."""
Nodes = Mapping[str, type[io.ComfyNode]]
"""Node classes by their id: those that only collect widgets and handles, which may be called at any time."""
_PREP, _COMBINE = "AnimeLoRA_DatasetPrep", "AnimeLoRA_CombineDatasets"
_MOST_LINKS = 50  # a chain of nodes is short; a circle never ends


def is_link(value: Any) -> bool:
    """Whether an input is linked instead of set."""
    return isinstance(value, list)


def options_of(nodes: Nodes, graph: Graph, link: Any, depth: int = 0) -> TrainOptions | None:
    """The settings of the options node that ``link`` leads to. Raises ValueError or KeyError for other links."""
    if link is None:
        return None
    if not is_link(link) or depth > _MOST_LINKS:
        raise ValueError("not a chain of options nodes")
    node = graph[link[0]]
    inputs = dict(node["inputs"])
    before = options_of(nodes, graph, inputs.pop("options", None), depth + 1)
    if any(map(is_link, inputs.values())):
        raise ValueError("a linked widget")
    (options,) = nodes[node["class_type"]].execute(**inputs, options=before).args
    return options if isinstance(options, TrainOptions) else None


def dataset_of(nodes: Nodes, graph: Graph, link: Any, depth: int = 0) -> DatasetHandle | None:
    """The dataset that ``link`` leads to, as it was prepared last; None if it was not prepared, or if that cannot be told."""
    node = graph.get(link[0]) if is_link(link) and depth < _MOST_LINKS else None
    if node is None:
        return None
    inputs = dict(node["inputs"])
    if node["class_type"] == _PREP:
        return find_prepared(str(link[0]), inputs)
    if node["class_type"] != _COMBINE:
        return None
    parts = {name: dataset_of(nodes, graph, inputs.pop(name, None), depth + 1) for name in ("first", "second")}
    if None in parts.values() or any(map(is_link, inputs.values())):
        return None
    (combined,) = nodes[_COMBINE].execute(**inputs, **parts).args
    return combined if isinstance(combined, DatasetHandle) else None
