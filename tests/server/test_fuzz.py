"""Values that nobody would type, sent to every node of the pack as anybody who reaches the port can send them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.comfy_server import Server
from tests.server.conftest import TINY
from tests.server.graphs import Graph, loader, node

EXAMPLES = 8  # for each node
PREFIX = "AnimeLoRA_"
MARK = "escaped-by-fuzz"
SOURCES: dict[str, list[Any]] = {"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2], "IMAGE": ["picture", 0]}
CORE = {*SOURCES, "CONTROL_NET", "UPSCALE_MODEL"}
CHEAP = {"steps": 1, "count": 2, "resolution": 64}
HOSTILE: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            *(None, True, [], {}, [[]], ["nowhere", 0], ["base", 99], {"__value__": ["a"]}),
            *(float("nan"), float("inf"), float("-inf"), 2**63, -(2**63), 10**400, -1, 0, 1e308),
            *(f"../../{MARK}", f"..\\..\\{MARK}", f"/tmp/{MARK}", f"{MARK}\x00.png", f"C:\\{MARK}", "~/", ".", "..", "/", "CON"),
            *("", " ", "x" * 100_000, "🎨👩‍🎨" * 50, "\ud800", "\u202e", "{}", "%s%n", "$(touch x)", "a\nb", "1" * 5000),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
)


def widgets(info: dict[str, Any]) -> dict[str, Any]:
    """Every input that is no socket, with its default."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            menu = kind if isinstance(kind, list) else options.get("options", [])
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                found[name] = options.get("default", menu[0] if menu else "")
    return found


def ours(info: dict[str, Any]) -> list[str]:
    """Widgets and the pack's own sockets. A number in place of a MODEL reaches core's nodes too, and fails there as it does here."""
    required = info["input"].get("required", {}) | info["input"].get("optional", {})
    return sorted(name for name, spec in required.items() if isinstance(spec[0], list) or spec[0] not in CORE)


def sockets(info: dict[str, Any]) -> dict[str, Any]:
    """Every required socket that a core node can feed, linked to it."""
    required = info["input"].get("required", {})
    return {name: SOURCES[spec[0]] for name, spec in required.items() if not isinstance(spec[0], list) and spec[0] in SOURCES}


def files_around(server: Server) -> dict[str, tuple[int, int]]:
    """Size and time of every file where the server could write, outside of what the pack and the server may."""
    free = {"animelora", "temp", "user", "__pycache__", "server.log"}
    found: dict[str, tuple[int, int]] = {}
    for root in (server.base.parent, server.comfyui):  # beside the server's folders, and the program itself
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in free | {".git", "venv"} and not os.path.islink(os.path.join(folder, name))]
            for name in set(names) - free:
                status = os.lstat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    near = (Path(tempfile.gettempdir()), Path.home(), Path("/"), server.comfyui.parent)
    marked = [path for folder in near for path in folder.glob(f"*{MARK}*")]
    return found | {str(path): (0, 0) for path in marked}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def send_one(server: Server, described: dict[str, Any], kind: str, outcomes: list[str], data: st.DataObject) -> None:
    values = widgets(described[kind])
    inputs = {**values, **{name: value for name, value in CHEAP.items() if name in values}, **sockets(described[kind])}
    for name in data.draw(st.lists(st.sampled_from(ours(described[kind]) or ["nothing"]), min_size=1, max_size=3, unique=True)):
        inputs[name] = data.draw(HOSTILE)
    graph: Graph = {
        "base": loader(TINY, full=False),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "tried": node(kind, **inputs),
        "show": node("PreviewAny", source=["tried", 0]),
    }
    # json.dumps, not requests: it writes NaN and Infinity, which ComfyUI reads
    body = json.dumps({"prompt": graph, "client_id": server.client_id})
    answer = requests.post(f"{server.url}/prompt", data=body, headers={"Content-Type": "application/json"}, timeout=30)
    if answer.status_code != 200 or answer.json().get("node_errors"):
        outcomes.append("refused")
        return
    entry = server.wait(answer.json()["prompt_id"], 120)
    errors = [told for event, told in entry["status"]["messages"] if event == "execution_error"]
    for error in errors:
        assert not error["node_type"].startswith(PREFIX) or error["exception_type"].endswith("AnimeLoRAError"), (
            inputs,
            error["exception_type"],
            error["exception_message"],
        )
        assert error["exception_message"].strip()
        assert "Traceback" not in error["exception_message"]
    outcomes.append("error" if errors else "result")


def test_values_from_nowhere_end_in_a_clear_error_or_a_result(server: Server) -> None:
    """Every node that the server describes as ours, a new one by itself."""
    described = server.get("/object_info")  # describing its nodes, the server makes folders of its own
    nodes = sorted(name for name in described if name.startswith(PREFIX))
    assert len(nodes) >= 11
    before, outcomes = files_around(server), dict[str, list[str]]()
    for kind in nodes:
        send_one(server, described, kind, outcomes.setdefault(kind, []))
    assert files_around(server) == before
    assert all(len(of_one) >= EXAMPLES // 2 for of_one in outcomes.values()), outcomes
    assert {"refused", "error", "result"} <= {outcome for of_one in outcomes.values() for outcome in of_one}  # values reach the nodes, too
    assert not server.children()
    server.run({"base": loader(TINY, full=False), "show": node("PreviewAny", source=["base", 1])})
