"""Values that are sent, and what a server may answer."""

from __future__ import annotations

import json
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.server.comfy_server import Server
from tests.server.files import TINY
from tests.server.graphs import Graph, defaults

PREFIX = "AnimeLoRA_"
MARK = "escaped-by-fuzz"
SAME = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
# the source of each socket; for other types, a node of ours with that output is used
SOURCES: dict[str, list[Any]] = {
    **{"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2], "IMAGE": ["picture", 0]},
    **{"DATASET": ["dataset", 0], "LORA": ["lora", 0]},
}
CHEAP: dict[str, Any] = {
    **{"steps": 1, "count": 2, "resolution": 64, "width": 64, "height": 64, "folder": "portraits"},
    **{"checkpoint": TINY, "max_steps": 1, "validation_steps": 1, "validate_every": 0, "precision": "fp32"},
}
HOSTILE: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            *(None, True, [], {}, [[]], ["nowhere", 0], ["base", 99], {"__value__": ["a"]}),
            *(float("nan"), float("inf"), float("-inf"), 2**63, -(2**63), 10**400, -1, 0, 1e308),
            *(f"../../{MARK}", f"..\\..\\{MARK}", f"/tmp/{MARK}", f"{MARK}\x00.png", f"C:\\{MARK}", "~/", ".", "..", "/", "CON"),
            *("half \ud800", "\udcff", f"~nosuchuser/{MARK}", '[{"name": null}]', "[" * 5000, "{a|b}|||c", "(a:1e400)", "--n --w 9e9"),
            *("", " ", "x" * 100_000, "🎨👩‍🎨" * 50, "\ud800", "\u202e", "{}", "%s%n", "$(touch x)", "a\nb", "1" * 5000),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
)


def cheap(info: dict[str, Any]) -> dict[str, Any]:
    """Widgets with values that run quickly."""
    values = defaults(info)
    return values | {name: value for name, value in CHEAP.items() if name in values}


def outcome(server: Server, graph: Graph, tried: object) -> str:
    """How a prompt ended: ``refused``, ``error`` or ``result``. Errors of our nodes must be user errors."""
    # json.dumps writes NaN and Infinity, which ComfyUI reads and requests refuses
    body = json.dumps({"prompt": graph, "client_id": server.client_id})
    answer = requests.post(f"{server.url}/prompt", data=body, headers={"Content-Type": "application/json"}, timeout=30)
    if answer.status_code != 200 or answer.json().get("node_errors"):
        return "refused"
    entry = server.wait(answer.json()["prompt_id"], 120)
    errors = [data for event, data in entry["status"]["messages"] if event == "execution_error"]
    for error in errors:
        assert not error["node_type"].startswith(PREFIX) or error["exception_type"].endswith("AnimeLoRAError"), (
            tried,
            error["exception_type"],
            error["exception_message"],
        )
        assert error["exception_message"].strip()
        assert "Traceback" not in error["exception_message"]
    return "error" if errors else "result"
