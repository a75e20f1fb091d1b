"""A training on the canvas that is asked for something, stopped, and continued with more epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.comfy_server import Server, until
from tests.server.files import TINY
from tests.server.graphs import Graph, node, prepare, train_settings
from trainer.runs.saved_lora import is_undamaged

EPOCH = 4  # steps: one for each portrait


def training(name: str, **changes: Any) -> Graph:
    """Dataset Prep and Train LoRA."""
    settings = train_settings(name=name, **{"max_steps": 0, "checkpoint_every": 0, **changes})
    return {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings)}


def run_of(server: Server, name: str, number: int = 0) -> Path:
    """The run folders of a name by age."""
    found = sorted(
        (server.base / "output" / "animelora" / "runs").glob(f"{name}-*"), key=lambda path: (path / "started.json").stat().st_ctime
    )
    return found[number]


def logged(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in the log of a run."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines() if (run / "events.jsonl").exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def ask(server: Server, run: str, **asked: Any) -> int:
    """Ask a training for something, as the panel does; the status."""
    return requests.post(f"{server.url}/animelora/runs/{run}/control", json=asked, timeout=30).status_code


def next_run(server: Server, graph: Graph, run: Path) -> dict[str, Any]:
    """What the server says that the graph will do."""
    body: Any = {"graph": graph, "node": "train", "run": run.name}
    return dict(requests.post(f"{server.url}/animelora/next_run", json=body, timeout=60).json())


def wait_for(server: Server, name: str, kind: str, count: int, **values: Any) -> Path:
    """Wait for ``count`` events of a kind with these values in the log of the one run of a name."""

    def arrived() -> bool:
        runs = server.base / "output" / "animelora" / "runs"
        found = [event for run in runs.glob(f"{name}-*") for event in logged(run, kind)]
        return sum(all(event[key] == value for key, value in values.items()) for event in found) >= count

    until(arrived, f"no {count} events {kind} {values}:\n{server.log()[-2000:]}")
    return run_of(server, name)


def test_a_training_saves_samples_pauses_takes_prompts_and_stops_with_a_lora(server: Server) -> None:
    graph = training("asked", epochs=400, validation_prompts="a girl")
    prompt = server.queue(graph)
    run = wait_for(server, "asked", "step", 2)
    assert ask(server, run.name, action="pause") == 200
    wait_for(server, "asked", "phase", 1, phase="paused")
    steps = len(logged(run, "step"))
    assert ask(server, run.name, action="save_now") == 200
    assert ask(server, run.name, action="edit_prompts", prompts=["a boy", "a cat"]) == 200
    assert ask(server, run.name, action="sample_now") == 200
    wait_for(server, "asked", "sample", 1, prompt="a cat", step=steps)
    assert len(logged(run, "step")) == steps, "it trained during the pause"
    saved = logged(run, "checkpoint")[-1]  # a fast machine may have saved at the end of an epoch before
    assert saved["step"] == steps and is_undamaged(Path(saved["lora"]))
    assert [event["action"] for event in logged(run, "requested")] == ["pause", "save_now", "edit_prompts", "sample_now"]
    assert ask(server, run.name, action="resume") == 200
    wait_for(server, "asked", "step", steps + 1)
    assert ask(server, run.name, action="stop_after_epoch") == 200
    status = server.wait(prompt)["status"]
    assert [kind for kind, _ in status["messages"]][-1] == "execution_interrupted"  # which the queue shows as cancelled, not as failed
    (stopped,) = logged(run, "stopped")
    assert stopped["step"] % EPOCH == 0
    assert is_undamaged(run / "checkpoints" / f"step-{stopped['step']:06d}" / f"asked-{stopped['step']:06d}.safetensors")
    menu = server.get("/object_info/AnimeLoRA_EpochCompare")["AnimeLoRA_EpochCompare"]["input"]["required"]["run"]
    assert run.name in json.dumps(menu)
    assert ask(server, run.name, action="save_now") == 404
    assert next_run(server, graph, run)["kind"] == "resumes"


def test_more_epochs_continue_and_other_settings_start_over(server: Server) -> None:
    two, three = training("longer", epochs=2, validate_every=0), training("longer", epochs=3, validate_every=0)
    server.run(two)
    first = run_of(server, "longer")
    assert next_run(server, two, first)["kind"] == "finished"
    answer = next_run(server, three, first)
    assert (answer["kind"], answer["step"], answer["steps"]) == ("continues", 2 * EPOCH, 3 * EPOCH)
    assert next_run(server, training("longer", epochs=3, validate_every=0, rank=2), first)["kind"] == "starts"
    linked = training("longer", epochs=3, validate_every=0)
    linked["train"]["inputs"]["epochs"] = ["prep", 1]
    assert next_run(server, linked, first)["kind"] == "unknown"
    server.run(three)
    second = run_of(server, "longer", 1)
    assert [event["start_step"] for event in logged(second, "plan")] == [0, 2 * EPOCH]
    assert [event["step"] for event in logged(second, "step")] == list(range(1, 3 * EPOCH + 1))
    assert next_run(server, three, second)["kind"] == "finished"


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"action": "quit"}', '{"action": "save_now", "path": "/etc/passwd"}', '{"action": "edit_prompts"}', "\x00"],
)
def test_requests_that_are_none_are_refused(server: Server, body: str) -> None:
    json_type = {"Content-Type": "application/json"}
    answer = requests.post(f"{server.url}/animelora/runs/nothing/control", data=body, headers=json_type, timeout=30)
    assert answer.status_code == 404
    assert requests.post(f"{server.url}/animelora/next_run", data=body, headers=json_type, timeout=30).json() == {"kind": "unknown"}
