"""The routes about runs serve a run's folder and the step to resume at, and nothing but runs."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.server.comfy_server import Server
from tests.server.loras import attention_lora
from trainer.runs import events

STOPPED = events.Stopped(7, "checkpoints/step-000007")
DONE = events.Done("lora.safetensors", "loss_curve.png", steps=7, seconds=2.0, loss=0.5)
STEP = events.Step(7, 9, 1, loss=0.5, loss_average=0.5, lr=1e-4, grad_norm=1.0, images_per_second=2.0, eta=3.0, memory_gb=1.0)


@pytest.mark.parametrize(
    ("last", "states", "ending"),
    [
        (DONE, (7,), {"event": "done", "steps": 7}),
        (STOPPED, (4, 7), {"event": "stopped", "step": 7}),
        (STOPPED, (4,), {"event": "stopped", "step": 4}),  # the newer state was pruned or is damaged
        (STEP, (4,), {"event": "stopped", "step": 4}),  # killed without a last event
        (STEP, (), {"event": "stopped", "step": 0, "path": ""}),
    ],
    ids=["done", "stopped", "stopped and lost", "killed", "killed before any state"],
)
def test_ending_of_a_run_names_the_step_to_resume_at(
    server: Server, request: pytest.FixtureRequest, last: events.Event, states: tuple[int, ...], ending: dict[str, object]
) -> None:
    name = "-".join(request.node.callspec.id.split()) + "-0123456789abcdef"
    folder = server.base / "output" / "animelora" / "runs" / name
    for step in states:
        state = folder / "checkpoints" / f"step-{step:06d}"
        state.mkdir(parents=True)
        (state / "state.pt").touch()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(f"{events.encode_event(event)}\n" for event in (STEP, last)), encoding="utf-8")
    answer = server.get(f"/animelora/runs/{name}")
    assert answer["folder"] == str(folder.resolve())
    assert {key: answer["ending"][key] for key in ending} == ending


def test_routes_serve_nothing_but_runs(server: Server) -> None:
    secret = server.base / "output" / "animelora" / "events.jsonl"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("{}", encoding="utf-8")
    for name in ("..", "%2e%2e", "..%2f..", "%2fetc", ".", "no-such-run", "_cache", "a%00b", "..%5c.."):
        answer = requests.get(f"{server.url}/animelora/runs/{name}", timeout=30)
        assert answer.status_code in (404, 405), (name, answer.text[:200])
    for path in ("/animelora/running", "/animelora/finished", "/animelora/runs/x"):
        assert requests.post(f"{server.url}{path}", timeout=30).status_code in (403, 404, 405)


def test_keep_copies_the_lora_of_a_saved_step_only(server: Server) -> None:
    run = server.base / "output" / "animelora" / "runs" / "kept-0123456789abcdef"
    state = run / "checkpoints" / "step-000004"
    state.mkdir(parents=True)
    (run / "events.jsonl").write_text(f"{events.encode_event(STEP)}\n", encoding="utf-8")
    attention_lora(state / "kept-000004.safetensors", context=768)
    assert server.get(f"/animelora/runs/{run.name}")["saved"] == [4]
    route = f"{server.url}/animelora/runs/{run.name}/keep"
    for answer in (
        requests.post(route, json={"step": 5, "epoch": 1}, timeout=30),
        requests.post(route, json=["step"], timeout=30),
        requests.post(route, data={"step": 4, "epoch": 1}, timeout=30),
        requests.post(route.replace(run.name, ".."), json={"step": 4, "epoch": 1}, timeout=30),
    ):
        assert answer.status_code in (400, 404, 405), answer.text[:200]
    assert not list((server.base / "models" / "loras").glob("kept*"))
    assert requests.post(route, json={"step": 4, "epoch": 2}, timeout=30).json() == {"name": "kept_epoch_2.safetensors"}
    assert (server.base / "models" / "loras" / "kept_epoch_2.safetensors").is_file()


@pytest.mark.parametrize(
    "body",
    [
        '{"step": Infinity, "epoch": 1}', '{"step": 4, "epoch": NaN}', '{"step": 1' + "0" * 5000 + ', "epoch": 1}', "[" * 100_000,
        '{"step": 4, "epoch": {}}', '{"graph": {}, "node": "\\ud800", "run": "\\ud800"}',
        '{"graph": {"1": {"inputs": []}}, "node": "1", "run": "RUN"}',
        '{"graph": {"1": {"inputs": {"name": "\\ud800", "checkpoint": "../../secret.safetensors"}}}, "node": "1", "run": "RUN"}',
    ],
    ids=["infinite", "no number", "huge", "deep", "object", "half a character", "list of inputs", "path"],
)  # fmt: skip
def test_hostile_requests_are_refused_without_an_internal_error(server: Server, body: str) -> None:
    run = server.base / "output" / "animelora" / "runs" / "asked-0123456789abcdef"
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text(f"{events.encode_event(STEP)}\n", encoding="utf-8")
    options: dict[str, Any] = {"data": body.replace("RUN", run.name), "headers": {"Content-Type": "application/json"}, "timeout": 30}
    assert requests.post(f"{server.url}/animelora/runs/{run.name}/keep", **options).status_code == 400
    for what in ("delete", "delete_step"):
        assert requests.post(f"{server.url}/animelora/runs/{run.name}/{what}", **options).status_code == 400
    assert requests.post(f"{server.url}/animelora/runs/{run.name}/control", **options).status_code == 404
    assert requests.post(f"{server.url}/animelora/next_run", **options).json()["kind"] == "unknown"
