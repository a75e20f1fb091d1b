"""From a folder of images to a generated image through the API, queued again, cancelled and resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from tests.server.comfy_server import Server
from tests.server.files import FULL, TINY
from tests.server.graphs import CHAIN, Graph, node, prepare, train_and_use, train_settings

START_SECONDS = 900  # on a busy machine a child needs long to import its libraries
CANCEL_SECONDS = 2.0  # promised to the user; the only timed assertion


def events(run: Path) -> list[dict[str, Any]]:
    """The event stream of a run folder."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def run_folder(server: Server, name: str) -> Path:
    """The one run folder of a LoRA's name."""
    found = list((server.base / "output" / "animelora" / "runs").glob(f"{name}-*"))
    assert len(found) == 1, found
    return found[0]


def train_only(**changes: Any) -> Graph:
    """Dataset Prep and Train LoRA, which is an output node."""
    return {
        "prep": prepare(),
        "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **train_settings(**changes)),
    }


def assert_clean(log: str) -> None:
    """The log has no warnings about the LoRA and no traceback."""
    assert "lora key not loaded" not in log
    assert "NOT LOADED" not in log
    assert "Traceback" not in log
    assert "ERROR lora" not in log


def test_chain_runs_from_folder_to_image_and_trains_once(server: Server) -> None:
    """With a tiny random checkpoint; with ``--long`` one of Stable Diffusion 1.5's full size on the newest ComfyUI."""
    checkpoint = FULL if server.thorough else TINY
    graph = train_and_use(checkpoint, full=server.thorough, image="photo.png", **CHAIN)
    before = len(server.log())
    outputs = server.run(graph)
    log = server.log()[before:]
    assert_clean(log)
    assert "576 of 576 keys used" in log  # 192 modules, each with down, up and alpha

    with Image.open(server.images(outputs, "save")[0]) as picture:
        assert picture.size == (72, 72)
        assert len(set(picture.convert("L").tobytes())) > 10, "a flat picture"
    assert (server.base / "models" / "loras" / "chain.safetensors").is_file()
    assert (server.base / "output" / "animelora" / "datasets" / "myToken_face" / "manifest.json").is_file()
    trained = events(run_folder(server, "chain"))
    assert [event["event"] for event in trained if event["event"] in ("step", "done")] == ["step", "step", "done"]

    server.forget()  # else ComfyUI's cache would answer instead of the node
    server.run({name: graph[name] for name in ("prep", "train")})
    assert events(run_folder(server, "chain")) == trained, "it trained again"
    server.wait_for_text("found a finished run")
    assert_clean(server.log()[before:])


def test_progress_is_live_in_the_node(server: Server) -> None:
    seen, texts_before, core_before = len(server.messages), len(server.texts), (server.previews, server.core_texts)
    server.run(train_only(name="live", max_steps=3, validation_prompts="a girl\na boy"))
    sent = [m["data"] for m in server.messages[seen:] if m["type"] == "animelora.train"]
    assert {"phase", "plan", "step", "sample", "done"} <= {event["event"] for event in sent}
    assert {event["node_id"] for event in sent} == {"train"}
    steps = [event for event in sent if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3]
    bar = [m["data"] for m in server.messages[seen:] if m["type"] == "progress" and m["data"]["node"] == "train"]
    assert (bar[-1]["value"], bar[-1]["max"]) == (3, 3)
    samples = [event for event in sent if event["event"] == "sample"]
    assert len(samples) == 4
    assert (server.previews, server.core_texts) == core_before, "the panel shows images and text; ComfyUI's would make the node grow"
    picture = requests.get(f"{server.url}/view", params=samples[0]["view"], timeout=30)
    assert picture.headers["Content-Type"] == "image/png"
    server.wait_for_text("trained in")
    assert {owner for owner, _ in server.texts[texts_before:]} == {"train"}


def test_cancel_stops_the_child_and_the_next_queue_resumes(server: Server) -> None:
    before = len(server.log())
    graph = train_only(name="cancelled", max_steps=0, epochs=400, checkpoint_every=5, validate_every=0)
    seen = len(server.messages)
    prompt = server.queue(graph)
    wait_for_step(server, seen, 7)
    children = server.children()
    assert children, "no training child"
    pressed = time.monotonic()
    server.interrupt()
    _gone, alive = psutil.wait_procs(children, timeout=20)
    stopped = time.monotonic() - pressed
    assert not alive
    status = server.wait(prompt)["status"]
    assert [kind for kind, _ in status["messages"]][-1] == "execution_interrupted"
    assert stopped < CANCEL_SECONDS * crowding()
    assert not server.children()
    run = run_folder(server, "cancelled")
    kept = events(run)
    assert "done" not in [event["event"] for event in kept]

    seen = len(server.messages)
    prompt = server.queue(graph)
    wait_for_step(server, seen, 1, any_step=True)
    server.interrupt()
    server.wait(prompt)
    resumed = events(run)[len(kept) :]
    plan = next(event for event in resumed if event["event"] == "plan")
    assert plan["start_step"] >= 5, "it started from the beginning"
    first = next(event for event in resumed if event["event"] == "step")
    assert first["step"] == plan["start_step"] + 1
    assert_clean(server.log()[before:])


def crowding() -> float:
    """The load per core, at least 1: on a shared machine everything takes longer by this factor."""
    load: float = psutil.getloadavg()[0]
    return max(1.0, load / (psutil.cpu_count() or 1))


def wait_for_step(server: Server, seen: int, step: int, *, any_step: bool = False) -> None:
    """Wait until the browser has received ``step``, or any step."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        steps = [m["data"]["step"] for m in server.messages[seen:] if m["type"] == "animelora.train" and m["data"]["event"] == "step"]
        if steps and (any_step or steps[-1] >= step):
            return
        time.sleep(0.05)
    pytest.fail(f"training did not reach step {step}:\n{server.log()[-3000:]}")
