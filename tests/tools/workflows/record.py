"""Records workflows as users of a release have saved them: ``python -m tests.tools.workflows.record http://127.0.0.1:8188``.

For each template and for one graph with every node of the pack, into tests/data/workflows/<version>: the workflow as the frontend saves
it, and beside it the prompt as "Export (API)" writes it. A released folder is never recorded again, since it stands for users' files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests

from tests.browser.frontend import opened
from trainer import __version__

from .canvas import Canvas, Group, Node
from .graphs import GRAPHS
from .object_info import ObjectInfo, choices, inputs_of, is_widget, options, outputs_of, socket_type

FOLDER = Path(__file__).resolve().parents[2] / "data" / "workflows"
OURS = "AnimeLoRA_"
_CORE = ("CheckpointLoaderSimple", "LoadImage", "ControlNetLoader")  # sources for our sockets
_BY_MACHINE = (
    "checkpoint",
    "folder",
    "lora_name",
    "run",
    "tagger",
    "face_detector",
    "sampler_name",
    "scheduler",
    "regularisation_folder",
    "continue_from",
)


def every_node(info: ObjectInfo) -> Canvas:
    """All nodes of the pack, linked wherever types match, with values other than the defaults."""
    canvas = Canvas("every node", info)
    made: list[Node] = [canvas.node(kind) for kind in _CORE]
    waiting = sorted(name for name in info if name.startswith(OURS))
    while waiting:
        ready = [name for name in waiting if all(kind in _offered(info, made) for kind in _needed(info, name))]
        assert ready, f"nothing feeds {waiting}"
        for name in ready:
            made.append(canvas.node(name, **_values(info, name), **_links(info, name, made)))
        waiting = [name for name in waiting if name not in ready]
    shown = [
        canvas.node("PreviewImage", images=node[output["name"]])
        for node in made
        if node.type.startswith(OURS)
        for output in outputs_of(info[node.type])
        if output["type"] == "IMAGE"
    ]
    canvas.row(Group("", [[canvas.note("# Every node")]]), Group("Nodes", [[node] for node in made]))
    canvas.row(Group("Pictures", [[node] for node in shown]))
    return canvas


def _offered(info: ObjectInfo, made: list[Node]) -> dict[str, tuple[Node, str]]:
    return {output["type"]: (node, output["name"]) for node in reversed(made) for output in outputs_of(info[node.type])}


def _sockets(info: ObjectInfo, name: str) -> dict[str, str]:
    return {key: socket_type(spec) for key, spec in inputs_of(info[name]).items() if not is_widget(spec)}


def _needed(info: ObjectInfo, name: str) -> set[str]:
    required = info[name]["input"].get("required", {})
    return {kind for key, kind in _sockets(info, name).items() if key in required}


def _links(info: ObjectInfo, name: str, made: list[Node]) -> dict[str, Any]:
    offered = _offered(info, made)
    return {key: offered[kind][0][offered[kind][1]] for key, kind in _sockets(info, name).items() if kind in offered and kind != "STRING"}


def _values(info: ObjectInfo, name: str) -> dict[str, Any]:
    """Every widget with a value other than its default, except those that depend on the machine's files."""
    found: dict[str, Any] = {}
    for key, spec in inputs_of(info[name]).items():
        if not is_widget(spec) or key in _BY_MACHINE:
            continue
        given, menu = options(spec), choices(spec)
        default = given.get("default")
        if menu is not None:
            found[key] = next((choice for choice in menu if choice != (menu[0] if default is None else default)), menu[0])
        elif spec[0] == "BOOLEAN":
            found[key] = not default
        elif spec[0] == "STRING":
            found[key] = default if key in ("saved_steps", "prompts") or _is_number(default) else f"recorded {key}"
        else:
            number, step = given["default"], given.get("step") or 1
            found[key] = number + step if number + step <= given["max"] else number - step
    return found


def _is_number(text: Any) -> bool:
    """Whether a text widget expects numbers."""
    return bool(text) and all(letter in "0123456789.,- e" for letter in str(text))


def main() -> int:
    """Record the current version."""
    url = sys.argv[1].rstrip("/")
    info = requests.get(f"{url}/object_info", timeout=60).json()
    folder = FOLDER / __version__
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {name: draw(info).draw() for name, draw in GRAPHS.items()} | {"every_node": every_node(info).draw()}
    with opened(url) as frontend:
        for name, graph in graphs.items():
            frontend.load(graph, name)
            _write(folder / f"{name}.json", frontend.serialized())
            _write(folder / f"{name}.api.json", frontend.prompt())
            print(name)
    return 0


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
