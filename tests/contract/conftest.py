"""How each ComfyUI describes our nodes, asked once a session; and the helpers of nodes that need no ComfyUI."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tools.comfyui import ComfyUI, find_comfyuis
from tests.tools.nodes.node_description import describe_nodes

ROOT = Path(__file__).resolve().parents[2]
_FOUND = find_comfyuis()
_PLACES: list[ComfyUI | None] = [*_FOUND] or [None]
_PACKAGE = "animelora_without_comfyui"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that ask a ComfyUI for its description of our nodes; older ones are asked only with ``--long``.

    Without it, tests/server shows that older ComfyUIs load the nodes and accept every workflow.
    """
    if isinstance(item, pytest.Function) and "description" in item.fixturenames:
        item.add_marker(pytest.mark.comfyui)
        if item.callspec.params["description"] in _FOUND[1:]:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", params=_PLACES, ids=[each.version for each in _FOUND] or ["none"])
def description(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``nodes`` as ``/object_info`` gives them, from a real ComfyUI of each version that there is."""
    if request.param is None:
        request.getfixturevalue("comfyui")  # skips with the reason
    place: ComfyUI = request.param
    base = tmp_path_factory.mktemp("base")
    (base / "input" / "first" / "second").mkdir(parents=True)
    (base / "input" / ".hidden").mkdir()
    return describe_nodes(place, base)


@pytest.fixture(scope="session")
def helper() -> Callable[[str], ModuleType]:
    """Import a module of ``nodes/`` that does not use ComfyUI, without running ``nodes/__init__.py``."""
    for name, folder in ((_PACKAGE, ROOT), (f"{_PACKAGE}.nodes", ROOT / "nodes")):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
    return lambda name: importlib.import_module(f"{_PACKAGE}.nodes.shared.{name}")
