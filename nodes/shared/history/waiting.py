"""Trainings that wait in ComfyUI's queue, and what each will do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....trainer.core.files.paths import safe_name
from ....trainer.runs.run_list import ListedRun
from ..before_run.graph_inputs import Nodes
from ..next_run import next_outlook
from ..widgets.training_widgets import TRAIN_LORA_WIDGETS

_MOST = 50  # trainings that are listed
_STARTS, _UNKNOWN = {"kind": "starts"}, {"kind": "unknown"}
_MOST_EXAMINED = 10  # trainings whose inputs are opened to see what they will do


def waiting_trainings(train: type[Any], options_nodes: Nodes, queue: Sequence[Any], runs: Sequence[ListedRun]) -> list[dict[str, Any]]:
    """The Train LoRA nodes of the prompts in ``queue``, in its order: name, epochs, and the answer of ``next_outlook``.

    Where the dataset was not prepared before, it is that of the last of ``runs``, the newest first, that has the same name.
    """
    rows: list[dict[str, Any]] = []
    for graph, node_id, inputs in itertools.islice(_trainings(queue), _MOST):
        name = safe_name(str(inputs.get("name", "")))
        outlook = _outlook(train, options_nodes, graph, node_id, name, runs) if len(rows) < _MOST_EXAMINED else _UNKNOWN
        rows.append({"name": name, "epochs": _whole(inputs.get("epochs")), **outlook})
    return rows


def _outlook(
    train: type[Any], options_nodes: Nodes, graph: Mapping[str, Any], node_id: str, name: str, runs: Sequence[ListedRun]
) -> dict[str, Any]:
    """What a training will do; without any runs it can only start."""
    same = next((run.folder for run in runs if run.name == name), None)
    found = next_outlook(train, options_nodes, graph, node_id, same)
    if found["kind"] == "unknown" and not runs:
        return _STARTS
    return {key: found[key] for key in ("kind", "step", "steps") if key in found}


def _trainings(queue: Sequence[Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Graph, node id and inputs of each Train LoRA node; an entry of the queue is (number, id, graph, …)."""
    for item in sorted(queue, key=lambda item: item[0]):
        graph = item[2]
        for node_id, node in graph.items() if isinstance(graph, Mapping) else ():
            if isinstance(node, Mapping) and node.get("class_type") == TRAIN_LORA_WIDGETS.id and isinstance(node.get("inputs"), Mapping):
                yield graph, str(node_id), node["inputs"]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
