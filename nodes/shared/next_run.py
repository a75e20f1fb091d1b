"""What Train LoRA will do with the settings on the canvas: start, resume, continue an earlier run, or use the finished LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...trainer.config import run_config
from ...trainer.core.errors import UserError
from ...trainer.runs.run_folder import RunFolder
from .inputs.socket_types import TrainOptions
from .wording import on_canvas

Graph = Mapping[str, Any]
"""A graph in ComfyUI's API format."""
Nodes = Mapping[str, type[io.ComfyNode]]
"""Node classes by their id."""
_DATASET_KEYS = ("path", "repeats", "loss_weight", "hash", "more")
_UNKNOWN = {"kind": "unknown"}
_MOST_LINKS = 50  # a chain of options nodes is short; a circle never ends


def next_run(train: type[Any], options_nodes: Nodes, graph: Graph, node_id: str, last_run: Path) -> dict[str, Any]:
    """What the Train LoRA node ``node_id`` of ``graph`` will do, if its dataset is still that of ``last_run``, the folder of a run.

    ``train`` is the class of Train LoRA, and ``options_nodes`` are the nodes whose settings it takes: no other node is called. ``kind`` is
    ``unknown`` where that is known only once the graph runs: a widget is linked, or a setting is not valid.
    """
    from ...trainer.launch.outlook import outlook
    from ...trainer.launch.prepared_run import prepare_run

    try:
        inputs = graph[node_id]["inputs"]
        widgets = {name: value for name, value in inputs.items() if name not in ("dataset", "options")}
        if any(map(_is_link, widgets.values())):
            return _UNKNOWN
        options = _options(options_nodes, graph, inputs.get("options"))
        last = run_config.load_config(RunFolder(last_run, "").config).dataset.model_dump(include=set(_DATASET_KEYS))
        found = outlook(prepare_run(train.configuration(last, widgets, options)))
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return _UNKNOWN
    return {**asdict(found), "message": on_canvas(found.message)}


def _options(nodes: Nodes, graph: Graph, link: Any, depth: int = 0) -> TrainOptions | None:
    """The settings of the options node that ``link`` leads to, which only collects its widgets. Raises ValueError for other links."""
    if link is None:
        return None
    if not _is_link(link) or depth > _MOST_LINKS:
        raise ValueError("not a chain of options nodes")
    node = graph[link[0]]
    inputs = dict(node["inputs"])
    before = _options(nodes, graph, inputs.pop("options", None), depth + 1)
    if any(map(_is_link, inputs.values())):
        raise ValueError("a linked widget")
    (options,) = nodes[node["class_type"]].execute(**inputs, options=before).args
    return options if isinstance(options, TrainOptions) else None


def _is_link(value: Any) -> bool:
    return isinstance(value, list)
