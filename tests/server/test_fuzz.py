"""Values that nobody would type, sent to every node of the pack as anybody who reaches the port can send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.comfy_server import Server
from tests.server.conftest import TINY
from tests.server.graphs import Graph, defaults, loader, node

EXAMPLES = 60
MARK = "escaped-by-fuzz"
NODES = (
    *(
        "DatasetPrep",
        "DatasetOptions",
        "TrainLora",
        "TrainOptions",
        "NetworkOptions",
        "LoadLora",
        "AnimeImg2Img",
        "StyleCompare",
        "EpochCompare",
    ),
    *("LoraStack", "LearningOptions", "MachineOptions", "PickEpoch", "ExportLora", "DemoPictures", "LoadDemoBase"),
)
SOURCES: dict[str, list[Any]] = {"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2], "IMAGE": ["picture", 0]}
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
# rows of LoRA Stack: JSON that is nearly right
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["on", "name", "strength", "clip", "nmae"]), HOSTILE, max_size=4),
    max_size=3,
).map(json.dumps)


def tried(info: dict[str, Any]) -> list[str]:
    """Every input: widgets, the pack's own sockets, and core's, which a program can give a number instead of a link."""
    return sorted(info["input"].get("required", {}) | info["input"].get("optional", {}))


def sockets(info: dict[str, Any]) -> dict[str, Any]:
    """Every required socket that a core node can feed, linked to it."""
    required = info["input"].get("required", {})
    return {name: SOURCES[spec[0]] for name, spec in required.items() if not isinstance(spec[0], list) and spec[0] in SOURCES}


def files_around(server: Server) -> set[str]:
    """Every file where the server could write, outside of what the pack and the server may."""
    free = ("animelora", "temp", "user", "__pycache__")
    inside = {str(path) for path in server.base.rglob("*") if not set(free) & set(path.relative_to(server.base).parts)}
    near = (server.base.parent, Path("/tmp"), Path.home(), Path("/"), server.comfyui, server.comfyui.parent)
    return inside | {str(path) for folder in near for path in folder.glob(f"*{MARK}*")}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def send_one(server: Server, described: dict[str, Any], outcomes: list[str], data: st.DataObject) -> None:
    kind = "AnimeLoRA_" + data.draw(st.sampled_from(NODES))
    values = defaults(described[kind])
    inputs = {**values, **{name: value for name, value in CHEAP.items() if name in values}, **sockets(described[kind])}
    for name in data.draw(st.lists(st.sampled_from(tried(described[kind]) or ["nothing"]), min_size=1, max_size=3, unique=True)):
        inputs[name] = data.draw(st.one_of(HOSTILE, ROWS) if name == "loras" else HOSTILE)
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
        assert not error["node_type"].startswith("AnimeLoRA_") or error["exception_type"].endswith("AnimeLoRAError"), (
            inputs,
            error["exception_type"],
            error["exception_message"],
        )
        assert error["exception_message"].strip()
        assert "Traceback" not in error["exception_message"]
    outcomes.append("error" if errors else "result")


def test_values_from_nowhere_end_in_a_clear_error_or_a_result(server: Server) -> None:
    described = server.get("/object_info")  # describing its nodes, the server makes folders of its own
    before, outcomes = files_around(server), list[str]()
    send_one(server, described, outcomes)
    assert files_around(server) - before == set()
    assert len(outcomes) >= EXAMPLES // 2
    assert {"refused", "result"} <= set(outcomes)  # values got as far as the nodes, too
    assert not server.children()
    server.run({"base": loader(TINY, full=False), "show": node("PreviewAny", source=["base", 1])})
