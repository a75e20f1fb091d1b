"""Random and hostile values, sent to every node of the pack as anyone who reaches the port can send them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.server.comfy_server import Server
from tests.server.faults.fuzzing import HOSTILE, MARK, PREFIX, SAME, SOURCES, cheap, outcome
from tests.server.files import TINY
from tests.server.graphs import Graph, loader, node
from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers

MANY, FEW = 24, 8  # examples for each node
DEAR = {"AnimeLoRA_TrainLora": 6}  # fewer for nodes that take seconds
LORA_FILE = "fuzz.safetensors"
CORE = {"MODEL", "CLIP", "VAE", "IMAGE", "CONTROL_NET", "UPSCALE_MODEL", "MASK", "CONDITIONING", "LATENT"}
# rows of LoRA Stack: JSON that is nearly valid
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["on", "name", "strength", "clip", "nmae"]), HOSTILE, max_size=4),
    max_size=3,
).map(json.dumps)


def inputs_to_try(info: dict[str, Any]) -> list[str]:
    """Every input: widgets, and sockets, to which a program can send a number instead of a link."""
    return sorted(info["input"].get("required", {}) | info["input"].get("optional", {}))


def inputs_of(info: dict[str, Any], *groups: str) -> dict[str, str]:
    """Name and type of every socket in ``groups``."""
    found = {name: spec[0] for group in groups for name, spec in info["input"].get(group, {}).items()}
    return {name: kind for name, kind in found.items() if isinstance(kind, str)}


def surroundings(described: dict[str, Any]) -> tuple[Graph, dict[str, list[Any]]]:
    """Nodes that feed the sockets of ours, and the output to link for each type."""
    graph: Graph = {
        "base": loader(TINY, full=False),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "dataset": node(f"{PREFIX}DatasetPrep", **cheap(described[f"{PREFIX}DatasetPrep"])),
        "lora": node(f"{PREFIX}ExportLora", **(cheap(described[f"{PREFIX}ExportLora"]) | {"lora_name": LORA_FILE, "file_name": "fed"})),
    }
    sources = dict(SOURCES)
    for kind, info in sorted(described.items()):
        new = [(place, given) for place, given in enumerate(info["output"]) if isinstance(given, str) and given not in (*sources, *CORE)]
        if kind.startswith(PREFIX) and new and set(inputs_of(info, "required").values()) <= {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}:
            graph[kind] = node(kind, **cheap(info))
            sources |= {given: [kind, place] for place, given in new}
    return graph, sources


def files_around(server: Server) -> dict[str, tuple[int, int]]:
    """Size and time of every file that the server could write, except where the pack and the server may write."""
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


def send_one(server: Server, described: dict[str, Any], kind: str, outcomes: list[str], data: st.DataObject) -> None:
    around, sources = surroundings(described)
    info = described[kind]
    linked = {name: sources[given] for name, given in inputs_of(info, "required").items() if given in sources}
    offered = {name: sources[given] for name, given in inputs_of(info, "optional").items() if given in sources}
    linked |= {name: link for name, link in sorted(offered.items()) if data.draw(st.booleans())}
    inputs = {**cheap(info), **linked}
    for name in data.draw(st.lists(st.sampled_from(inputs_to_try(info) or ["nothing"]), min_size=1, max_size=3, unique=True)):
        inputs[name] = data.draw(st.one_of(HOSTILE, ROWS) if name == "loras" else HOSTILE)
    graph: Graph = {**around, "tried": node(kind, **inputs), "show": node("PreviewAny", source=["tried", 0])}
    used = {link[0] for link in inputs.values() if isinstance(link, list) and link and isinstance(link[0], str)} | {"tried", "show"}
    graph = {name: part for name, part in graph.items() if name in used}
    outcomes.append(outcome(server, graph, inputs))


def test_cards_of_hostile_loras_are_small_and_have_no_image(server: Server) -> None:
    folder = server.base / "models" / "loras" / "harm"
    folder.mkdir()
    try:
        for name, metadata in hostile.lora_metadata().items():
            save_file(lora_tensors(small_layers()), folder / f"{name}.safetensors", metadata)
            (folder / f"{name}.preview.png").write_bytes(hostile.eps())
            asked = {"name": str(Path("harm") / f"{name}.safetensors")}
            answer = requests.get(f"{server.url}/animelora/lora", params=asked, timeout=30)
            assert (answer.status_code, len(answer.content) < 20_000) == (200, True), name
            assert (answer.json()["thumbnail"], answer.json()["problem"]) == ("", ""), name
        assert not server.children()
    finally:
        shutil.rmtree(folder)


def test_random_values_give_a_clear_error_or_a_result(server: Server) -> None:
    """Tries every node of the pack that the server lists, so a new one is covered without further work."""
    save_file(lora_tensors(small_layers()), server.base / "models" / "loras" / LORA_FILE)
    described = server.get("/object_info")  # creates folders on the server
    nodes = sorted(name for name in described if name.startswith(PREFIX))
    assert len(nodes) >= 12
    before, outcomes = files_around(server), dict[str, list[str]]()
    for kind in nodes:
        of_one, examples = outcomes.setdefault(kind, []), min(DEAR.get(kind, MANY), MANY if server.thorough else FEW)
        settings(SAME, max_examples=examples)(given(data=st.data())(send_one))(server, described, kind, of_one)
        assert len(of_one) >= examples // 2, (kind, of_one)
    assert files_around(server) == before
    assert {"refused", "error", "result"} <= {outcome for of_one in outcomes.values() for outcome in of_one}  # some values reach the nodes
    assert not server.children()
    server.run({"base": loader(TINY, full=False), "show": node("PreviewAny", source=["base", 1])})
