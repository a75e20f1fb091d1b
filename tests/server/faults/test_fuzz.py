"""Random and hostile values, sent to every node of the pack as anyone who reaches the port can send them."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY, portrait
from tests.server.graphs import Graph, defaults, loader, node, prepare, train_settings
from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.runs import events
from trainer.runs.event_log import loss_history, read_samples, validation_history
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_times import start_day, training_seconds

MANY, FEW = 24, 8  # examples for each node
DEAR = {"AnimeLoRA_TrainLora": 6}  # fewer for nodes that take seconds
PREFIX = "AnimeLoRA_"
MARK = "escaped-by-fuzz"
SAME = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
LORA_FILE = "fuzz.safetensors"
CAPTION_FILES = ("one.txt", "one.png.txt", "one.json", "one.png.json", ".one_meta.json", "metadata.jsonl", "captions.csv")
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
LOGGED = (
    events.Plan(4, {"64x64": 4}, 1, 2, 2, 100, 72, "sd1", "cpu", "fp32", 1.0),
    events.Phase("training", 1, 2),
    events.Step(1, 2, 1, 0.5, 0.5, 1e-4, 1.0, 1.0, 0.0, 0.5),
    events.Validation(1, 1, 0.5, 2, {"10": 0.5}),
    events.Sample("/tmp/a.png", "a", 1, 1, 0),
    events.Done("a", "b", 2, 1.0, 0.5),
    events.Error("memory", "a", "b"),
    events.Stopped(1, "a"),
)
# the source of each socket; for other types, a node of ours with that output is used
SOURCES: dict[str, list[Any]] = {
    **{"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2], "IMAGE": ["picture", 0]},
    **{"DATASET": ["dataset", 0], "LORA": ["lora", 0]},
}
CORE = {"MODEL", "CLIP", "VAE", "IMAGE", "CONTROL_NET", "UPSCALE_MODEL", "MASK", "CONDITIONING", "LATENT"}
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


def cheap(info: dict[str, Any]) -> dict[str, Any]:
    """Widgets with values that run quickly."""
    values = defaults(info)
    return values | {name: value for name, value in CHEAP.items() if name in values}


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


def some_of(record: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with one or two fields replaced by hostile values."""
    return st.dictionaries(st.sampled_from(sorted(record)), HOSTILE, min_size=1, max_size=2).map(lambda changes: {**record, **changes})


def try_manifest(server: Server, made: Path, whole: Path, outcomes: list[str], data: st.DataObject) -> None:
    header = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    first, *others = (json.loads(line) for line in (whole / "manifest.jsonl").read_bytes().splitlines())
    row, changed = data.draw(some_of(first) | HOSTILE), data.draw(some_of(header) | st.just({}))
    for folder in (made, server.base / "input" / "fuzzed"):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        hostile.manifest(folder, [row, *others], changed)
    with suppress(UserError):
        open_dataset(made)
    outcomes += [outcome(server, {"tried": prepare(folder, trigger_word="fuzzed")}, (row, changed)) for folder in ("portraits", "fuzzed")]


def test_random_manifests_give_a_clear_error_or_a_result(server: Server, tmp_path: Path) -> None:
    """In a folder that is prepared again, in a source folder, and in a dataset that a training opens."""
    assert outcome(server, {"tried": prepare(trigger_word="fuzzed")}, "nothing odd") == "result"
    made = next((server.base / "output" / "animelora" / "datasets").glob("fuzzed_face*"))
    whole, outcomes = shutil.copytree(made, tmp_path / "whole"), list[str]()
    shutil.copytree(whole, server.base / "input" / "fuzzed")  # menus list what exists when they are requested
    try:
        examples = MANY if server.thorough else FEW
        settings(SAME, max_examples=examples)(given(data=st.data())(try_manifest))(server, made, whole, outcomes)
    finally:
        shutil.rmtree(server.base / "input" / "fuzzed")
    assert set(outcomes) <= {"error", "result"} and "result" in outcomes
    shutil.copytree(whole, made, dirs_exist_ok=True)
    assert outcome(server, {"tried": prepare(trigger_word="fuzzed")}, "nothing odd again") == "result"


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")
@pytest.mark.parametrize("name", CAPTION_FILES)
def test_pipe_in_place_of_a_caption_does_not_block(server: Server, name: str) -> None:
    folder = server.base / "input" / "piped"
    folder.mkdir()
    try:
        portrait(90, 3).save(folder / "one.png")
        os.mkfifo(folder / name)
        report = server.run({"prep": prepare("piped", trigger_word="piped")}, 60)["prep"]["text"][0]
        assert "1 image" in report and name in report
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", HEADERS)
def test_tar_with_a_huge_header_is_refused(server: Server, kind: bytes, tmp_path: Path) -> None:
    portrait(90, 3).save(tmp_path / "one.png")
    picture, archive = (tmp_path / "one.png").read_bytes(), server.base / "input" / "long.tar.gz"
    hostile.raw_tar(archive, ("one.png", tarfile.REGTYPE, picture), ("x", kind, bytes(1 << 27)), ("two.png", tarfile.REGTYPE, picture))
    try:
        with pytest.raises(PromptFailed, match="longer than 1 MB"):
            server.run({"prep": prepare("long.tar.gz", trigger_word="long")}, 60)
    finally:
        archive.unlink()


def try_log(server: Server, run: RunFolder, compare: dict[str, Any], outcomes: list[str], data: st.DataObject) -> None:
    odd = st.sampled_from(LOGGED).flatmap(lambda event: some_of(json.loads(events.encode_event(event))))
    lines = data.draw(st.lists(odd, min_size=1, max_size=4))
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for read in (read_samples, loss_history, validation_history, training_seconds):
        read(run.events)
    start_day(run, record=False)
    answer = requests.get(f"{server.url}/animelora/runs/{run.path.name}", timeout=30)
    assert answer.status_code == 200, (lines, answer.text)
    # another seed each time, else the server takes the image from its cache
    graph = {"base": loader(TINY, full=False), "tried": node(f"{PREFIX}EpochCompare", **compare, seed=len(outcomes))}
    outcomes.append(outcome(server, {**graph, "show": node("PreviewImage", images=["tried", 0])}, lines))


@pytest.fixture(scope="module")
def trained(server: Server) -> tuple[Graph, RunFolder]:
    """A graph that trains, and its run, which saved a LoRA at a checkpoint."""
    training = train_settings(name="fuzzed", checkpoint=TINY, max_steps=1, checkpoint_every=1, validate_every=0)
    graph: Graph = {
        "prep": prepare(trigger_word="fuzzed"),
        "train": node(f"{PREFIX}TrainLora", **training, dataset=["prep", 0]),
        "show": node("PreviewAny", source=["train", 0]),
    }
    server.run(graph)
    return graph, RunFolder(next((server.base / "output" / "animelora" / "runs").glob("fuzzed-*")), "fuzzed")


def test_random_logs_are_read_as_far_as_they_are_valid(server: Server, trained: tuple[Graph, RunFolder]) -> None:
    run, outcomes = trained[1], list[str]()
    compare = cheap(server.get("/object_info")[f"{PREFIX}EpochCompare"]) | {"run": run.path.name, "prompts": "x", "lora_strengths": "1"}
    compare |= {name: SOURCES[name.upper()] for name in ("model", "clip", "vae")}
    del compare["seed"]
    examples = MANY if server.thorough else FEW
    settings(SAME, max_examples=examples)(given(data=st.data())(try_log))(server, run, compare, outcomes)
    assert set(outcomes) == {"result"}


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")
def test_pipe_in_place_of_a_log_does_not_block(server: Server, trained: tuple[Graph, RunFolder]) -> None:
    graph, run = trained
    for path in (run.events, run.result):
        path.unlink()
        os.mkfifo(path)
    server.forget()
    with pytest.raises(PromptFailed, match=r"events\.jsonl is a pipe or a device"):
        server.run(graph, 120)
    assert not server.children()
    assert requests.get(f"{server.url}/animelora/runs/{run.path.name}", timeout=30).status_code == 404
