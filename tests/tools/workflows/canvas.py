"""A ComfyUI graph drawn by description: nodes in columns, columns in groups, groups in rows; written in the frontend's format.

Widgets and sockets come from the server's ``/object_info``, so that a wrong name or value is an error here, not on the canvas.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .object_info import ObjectInfo, has_control, inputs_of, is_folded, is_widget, options, outputs_of, socket_type, widget_values

TITLE = 30  # pixels of a node's title, which lies above its position
GAP = 40  # between nodes, columns and groups
_SLOT, _WIDGET, _TEXT = 20, 27, 110  # heights: a socket's row, a widget's row, a text box
_PANELS = {  # heights of what the pack's frontend extension adds to its nodes, in classic nodes
    "AnimeLoRA_TrainLora": 390,
    "AnimeLoRA_LoadLora": 214,
    "AnimeLoRA_LoraStack": 160,
    "AnimeLoRA_DatasetPrep": 136,
    "AnimeLoRA_ExportLora": 136,
    "AnimeLoRA_PickEpoch": 136,
    "AnimeLoRA_EpochCompare": 44,
    "AnimeLoRA_StyleCompare": 44,
}
_BESIDE, _LEAST = 700, 540  # width from which on Train LoRA's panel stands beside the widgets, and the height of the node then
_FIRST_VIEW = {"scale": 0.8, "offset": [110, 150]}  # readable, with the note beside the sidebar and below the top bars
_FOOT = 30  # the badge below a node in the Vue rendering
_GROUP_COLOUR = "#3f789e"
_NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}
_SPACE = uuid.UUID("6f2c0d3a-5c5e-4a0e-9d4b-1f2a3b4c5d6e")  # makes a graph's id from its name


@dataclass
class Node:
    """A node to be placed. ``inputs`` maps a socket or widget to where its link comes from."""

    type: str
    title: str
    widgets: dict[str, Any]
    inputs: dict[str, Output]
    size: tuple[int, int]
    properties: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Output:
        """The output called ``name``."""
        return Output(self, name)


@dataclass(frozen=True)
class Output:
    """One output socket of a node."""

    node: Node
    name: str


@dataclass
class Group:
    """A titled frame around columns of nodes; no frame without a title."""

    title: str
    columns: list[list[Node]]


class Canvas:
    """Collects rows of groups and writes the graph."""

    def __init__(self, name: str, info: ObjectInfo) -> None:
        self.name = name
        self._info = info
        self._rows: list[list[list[Group]]] = []
        self._app: tuple[Sequence[tuple[Node, str, str]], Sequence[Node]] | None = None

    def node(
        self,
        type: str,
        title: str = "",
        /,
        *,
        wide: int = 320,
        tall: int = 0,
        properties: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Node:
        """A node; ``values`` are outputs of other nodes or widget values. ``tall`` is for nodes that show pictures or text."""
        known = inputs_of(self._info[type])
        for name in values:
            if name not in known:
                raise ValueError(f"{type} has no input {name}")
        links = {name: value for name, value in values.items() if isinstance(value, Output)}
        widgets = {name: value for name, value in values.items() if not isinstance(value, Output)}
        made = Node(type, title, widgets, links, (wide, 0), dict(properties or {}))
        made.size = (wide, max(tall, self._height(made)))
        return made

    def note(self, text: str, *, wide: int = 380, tall: int = 400, title: str = "Read me") -> Node:
        """A note in Markdown."""
        return Node("MarkdownNote", title, {"text": text.strip() + "\n"}, {}, (wide, tall))

    def row(self, *parts: Group | Sequence[Group]) -> None:
        """Place groups beside each other, below the rows before; a sequence of groups is stacked in one place."""
        self._rows.append([[part] if isinstance(part, Group) else list(part) for part in parts])

    def app(self, inputs: Sequence[tuple[Node, str, str]], outputs: Sequence[Node]) -> None:
        """Open the graph in App mode: a form of the widgets ``inputs`` (node, name, label; without a label, the name is shown), and the
        images of the nodes ``outputs``."""
        self._app = inputs, outputs

    def draw(self) -> dict[str, Any]:
        """The graph in the frontend's format. It opens at its note."""
        groups, nodes = self._place()
        for number, node in enumerate(nodes, 1):
            node.id = number
        links: list[list[Any]] = []
        drawn = [self._draw(node, links) for node in nodes]
        for made in drawn:
            for slot, output in enumerate(made["outputs"]):
                output["links"] = [link[0] for link in links if (link[1], link[2]) == (made["id"], slot)] or None
        return {
            "id": str(uuid.uuid5(_SPACE, self.name)),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": drawn,
            "links": links,
            "groups": groups,
            "config": {},
            "extra": self._extra(),
            "version": 0.4,
        }

    def _extra(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"animelora_first_view": _FIRST_VIEW}  # read by web/first_view.js
        if self._app is not None:
            inputs, outputs = self._app
            for node, name, _label in inputs:
                if name not in inputs_of(self._info[node.type]):
                    raise ValueError(f"{node.type} has no widget {name}")
            shown = {"inputs": [[node.id, name] for node, name, _label in inputs], "outputs": [node.id for node in outputs]}
            extra |= {"linearMode": True, "linearData": shown}
        return extra

    def _label(self, node: Node, widget: str) -> str:
        """The label that a widget has in App mode; empty: its name."""
        inputs = self._app[0] if self._app else ()
        return next((label for each, name, label in inputs if each is node and name == widget), "")

    def _place(self) -> tuple[list[dict[str, Any]], list[Node]]:
        """Frames of all groups and all nodes, in reading order, with their positions."""
        frames: list[dict[str, Any]] = []
        nodes: list[Node] = []
        top = 0
        for row in self._rows:
            left, bottom = 0, top
            for stack in row:
                right, y = left, top
                for group in stack:
                    box = _place_group(group, left, y)
                    nodes += [node for column in group.columns for node in column]
                    if group.title:
                        frames.append(
                            {
                                "id": len(frames) + 1,
                                "title": group.title,
                                "bounding": box,
                                "color": _GROUP_COLOUR,
                                "font_size": 24,
                                "flags": {},
                            }
                        )
                    right = max(right, left + box[2])
                    y += box[3] + GAP
                left, bottom = right + GAP, max(bottom, y - GAP)
            top = bottom + 2 * GAP
        return frames, nodes

    def _draw(self, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        if node.type == "MarkdownNote":
            return {
                **_frame(node),
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [node.widgets["text"]],
                **_NOTE_COLOURS,
            }
        info = self._info[node.type]
        inputs: list[dict[str, Any]] = []
        for name, spec in inputs_of(info).items():
            label = self._label(node, name)
            if is_widget(spec) and name not in node.inputs and not label:
                continue
            slot: dict[str, Any] = {"name": name, "type": socket_type(spec), "link": None}
            if is_widget(spec):
                slot["widget"] = {"name": name}
            if label:
                slot["label"] = label
            if name in node.inputs:
                source = node.inputs[name]
                origin = [output["name"] for output in outputs_of(self._info[source.node.type])]
                slot["link"] = len(links) + 1
                links.append([slot["link"], source.node.id, origin.index(source.name), node.id, len(inputs), socket_type(spec)])
            inputs.append(slot)
        core = not info["python_module"].startswith("custom_nodes.")
        # newer versions pass pictures on from the nodes that save them; older ones end there, and so do our graphs
        ends = core and info["output_node"]
        return {
            **_frame(node),
            "inputs": inputs,
            "outputs": [] if ends else [{**output, "links": None} for output in outputs_of(info)],
            "properties": {"cnr_id": "comfy-core" if core else "animelora", "Node name for S&R": node.type, **node.properties},
            "widgets_values": widget_values(info, node.widgets),
        }

    def _height(self, node: Node) -> int:
        info = self._info[node.type]
        specs = inputs_of(info)
        sockets = [name for name, spec in specs.items() if not is_widget(spec)]
        is_beside = node.type == "AnimeLoRA_TrainLora" and node.size[0] >= _BESIDE
        total = max(len(sockets), len(outputs_of(info))) * _SLOT + _FOOT + (0 if is_beside else _PANELS.get(node.type, 0))
        total += _WIDGET if any(is_folded(spec) for spec in specs.values()) else 0  # the button that unfolds them
        for name, spec in specs.items():
            if is_widget(spec) and not is_folded(spec):
                text = options(spec).get("multiline") and name not in node.inputs
                total += (_TEXT if text else _WIDGET) + (_WIDGET if has_control(name, spec) else 0)
                total += 2 * _WIDGET if options(spec).get("multiline") and name in node.inputs else 0
        return max(total, _LEAST) if is_beside else total


def _place_group(group: Group, left: int, top: int) -> list[int]:
    """Give the group's nodes their positions; the group's bounds ``[x, y, width, height]``."""
    head, pad = (TITLE + GAP // 4, GAP // 2) if group.title else (0, 0)
    x, low = left + pad, top
    for column in group.columns:
        y = top + head
        width = max(node.size[0] for node in column)
        for node in column:
            node.size = (width, node.size[1])
            y += TITLE
            node.pos = (x, y)
            y += node.size[1] + GAP
        low = max(low, y - GAP)
        x += width + GAP
    return [left, top, x - GAP + pad - left, low + pad - top]


def _frame(node: Node) -> dict[str, Any]:
    frame: dict[str, Any] = {
        **{"id": node.id, "type": node.type, "pos": list(node.pos), "size": list(node.size)},
        **{"flags": {}, "order": node.id - 1, "mode": 0},
    }
    return {**frame, "title": node.title} if node.title else frame
