"""Node schemas, written once for all supported versions of ComfyUI.

ComfyUI 0.3.64 raises TypeError for ``Schema(search_aliases=…)`` and ``Input(advanced=…)``; later versions use them.
Arguments that the running version does not know are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from .input_names import readable
from .widgets.widget import PREFIX, NodeWidgets

CATEGORY = "AnimeLoRA"


def known(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The ``arguments`` that ``function`` accepts by name."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def schema(
    name: str,
    title: str,
    description: str,
    inputs: Sequence[io.Input],
    outputs: Sequence[io.Output],
    *,
    search: Sequence[str] = (),
    is_output_node: bool = False,
    experimental: bool = False,
    knows_graph: bool = False,
) -> io.Schema:
    """A node's schema: id ``AnimeLoRA_<name>``, shown as ``<title> (AnimeLoRA)`` to distinguish it from core's nodes.

    ``knows_graph`` is for nodes that write images: ``cls.hidden`` then holds prompt and workflow, to be stored in them.
    """
    optional = known(io.Schema.__init__, {"search_aliases": list(search)})
    return io.Schema(
        node_id=PREFIX + name,
        display_name=f"{title} (AnimeLoRA)",
        category=CATEGORY,
        description=description,
        inputs=list(inputs),
        outputs=list(outputs),
        hidden=[io.Hidden.unique_id, *([io.Hidden.prompt, io.Hidden.extra_pnginfo] if knows_graph else [])],
        is_output_node=is_output_node,
        is_experimental=experimental,
        **optional,
    )


def field(kind: Any, id: str, tooltip: str, *, advanced: bool = False, widget: str = "", **arguments: Any) -> io.Input:
    """An input of a ComfyUI type, for example ``field(io.Int, "rank", "…", default=16)``.

    ``advanced`` folds a widget; for ComfyUI 0.3.64, which does not know the flag, the pack's frontend extension does it. ``widget`` names
    a widget of that extension that replaces the type's usual one in the browser. Other unknown arguments raise TypeError.
    """
    arguments["tooltip"] = tooltip
    arguments["display_name"] = readable(id)
    flag = known(kind.Input.__init__, {"advanced": True}) if advanced else {}
    result: io.Input = kind.Input(id, **arguments, **flag)
    # Set afterwards: ComfyUI 0.3.64 takes no extra_dict for its own types, and widget_type would change the socket's type
    extra = ({"widgetType": widget} if widget else {}) | ({"advanced": True} if advanced and not flag else {})
    if extra:
        result.extra_dict = {**(result.extra_dict or {}), **extra}
    return result


def inputs(node: NodeWidgets, preselected: Mapping[str, str] | None = None, **given: io.Input | Sequence[str]) -> list[io.Input]:
    """All inputs of ``node``. ``given`` are the inputs that set no setting, and the menus that depend on this machine, of which
    ``preselected`` names the entries that a new node has."""
    kinds = {"BOOLEAN": io.Boolean, "INT": io.Int, "FLOAT": io.Float, "COMBO": io.Combo, "STRING": io.String}
    result: list[io.Input] = []
    for row in node.inputs:
        if isinstance(row, str):
            result.append(given[row])
            continue
        setting = node.setting(row)
        kind, arguments = kinds[row.kind(setting)], row.arguments(setting)
        if row.name in given:
            kind, arguments["options"] = io.Combo, list(given[row.name])
            if preselected and row.name in preselected:
                arguments["default"] = preselected[row.name]
        result.append(field(kind, row.name, advanced=row.advanced, **arguments))
    return result


def result(kind: Any, id: str, tooltip: str) -> io.Output:
    """An output shown as ``id``. The prefix keeps its id apart from the inputs' ids, as ComfyUI 0.3.64 requires."""
    output: io.Output = kind.Output(f"out_{id}", display_name=id, tooltip=tooltip)
    return output
