"""What the panel is told before a run: what it needs, why it would fail, and that it can start over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests

from tests.server.comfy_server import Server
from tests.server.files import TINY
from tests.server.graphs import Graph, node, prepare, train_settings

EPOCH = 4  # steps: one for each portrait


def training(name: str, trigger: str = "beforeToken", **changes: Any) -> Graph:
    """Dataset Prep and Train LoRA."""
    settings = {"max_steps": 0, "checkpoint_every": 0, "validate_every": 0, "validation_prompts": f"{trigger} girl", **changes}
    train = train_settings(name=name, checkpoint=TINY, **settings)
    return {"prep": prepare(trigger_word=trigger), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], **train)}


def ask(server: Server, graph: Graph, run: str = "") -> dict[str, Any]:
    """What the server says about Train LoRA in the graph."""
    body: Any = {"graph": graph, "node": "train"} | ({"run": run} if run else {})
    return dict(requests.post(f"{server.url}/animelora/next_run", json=body, timeout=120).json())


def start_steps(server: Server, name: str) -> list[int]:
    """The step at which each start of the one run of a name with ``epochs`` began, for all runs of the name by age."""
    logs = sorted((server.base / "output" / "animelora" / "runs").glob(f"{name}-*/events.jsonl"), key=lambda log: log.stat().st_mtime)
    events = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    return [event["start_step"] for event in events if event["event"] == "plan"]


def test_needs_of_a_run_are_known_once_its_dataset_was_prepared(server: Server) -> None:
    graph = training("needs", trigger="needsToken", epochs=3)
    before = ask(server, graph)
    assert (before["kind"], before["missing"], before["problems"]) == ("unknown", "dataset", [])
    server.run({"prep": graph["prep"], "sheet": node("PreviewImage", images=["prep", 1])})
    after = ask(server, graph)
    assert (after["kind"], after["step"], after["steps"]) == ("starts", 0, 3 * EPOCH)
    assert (after["plan"]["images"], after["plan"]["epochs"]) == (EPOCH, 3)
    assert 0 < after["plan"]["memory_gb"] < after["plan"]["usable_gb"]
    graph["train"]["inputs"]["batch_size"] = 2
    assert ask(server, graph)["steps"] == 3 * EPOCH / 2
    graph["prep"]["inputs"]["resolution"] = 72
    assert ask(server, graph)["missing"] == "dataset"  # another dataset


def test_combined_datasets_count_together(server: Server) -> None:
    graph = training("together", trigger="togetherToken")
    server.run({"prep": graph["prep"], "sheet": node("PreviewImage", images=["prep", 1])})
    graph["both"] = node("AnimeLoRA_CombineDatasets", first=["prep", 0], second=["prep", 0], second_repeats=2)
    graph["train"]["inputs"]["dataset"] = ["both", 0]
    answer = ask(server, graph)
    assert (answer["plan"]["images"], answer["steps"]) == (2 * EPOCH, 3 * EPOCH)


def test_problems_come_with_the_widgets_that_correct_them(server: Server) -> None:
    graph = training("problems", validation_prompts="a girl", alpha=0.1)
    server.run({"prep": graph["prep"], "sheet": node("PreviewImage", images=["prep", 1])})
    alpha, trigger = ask(server, graph)["problems"]
    assert (alpha["refused"], alpha["fixes"]) == (
        False,
        [{"node": "AnimeLoRA_TrainLora", "widget": "alpha", "value": 4, "text": "Train LoRA → alpha = 4"}],
    )
    assert "beforeToken" in trigger["message"] and trigger["fixes"] == []
    (wrong,) = ask(server, training("problems", preset="style-sdxl"))["problems"]
    assert wrong["refused"] and wrong["fixes"][0] | {"text": ""} == {
        "node": "AnimeLoRA_TrainLora", "widget": "preset", "value": "style-sd15", "text": "",
    }  # fmt: skip
    (none,) = ask(server, training("problems", epochs=0))["problems"]
    assert none["refused"] and "epochs" in none["message"]
    (fp16,) = ask(server, training("problems", precision="fp16"))["problems"]
    assert fp16["refused"] and "fp16" in fp16["message"]


def test_checkpoint_of_no_known_family_is_neither_preselected_nor_accepted(server: Server) -> None:
    place = server.base / "models" / "checkpoints" / "aaa-notes.safetensors"
    place.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    try:
        info = server.get("/object_info/AnimeLoRA_TrainLora")["AnimeLoRA_TrainLora"]["input"]["required"]["checkpoint"]
        assert place.name in json.dumps(info)
        assert info[1]["default"] not in (place.name, None)
        (problem,) = ask(server, training("notes") | {"train": node("AnimeLoRA_TrainLora", **train_settings(checkpoint=place.name))})[
            "problems"
        ]
        assert problem["refused"] and place.name in problem["message"]
        (fix,) = problem["fixes"]
        assert (fix["widget"], fix["value"]) == ("checkpoint", info[1]["default"])
    finally:
        place.unlink()


def test_run_that_would_continue_starts_over_on_request(server: Server) -> None:
    server.run(training("over", epochs=1))
    longer = training("over", epochs=2)
    assert ask(server, longer)["kind"] == "continues"
    mark = {"nodes": [{"id": "train", "properties": {"animelora_start_over": True}}]}
    queued: Any = {"prompt": longer, "client_id": server.client_id, "extra_data": {"extra_pnginfo": {"workflow": mark}}}
    prompt = requests.post(f"{server.url}/prompt", json=queued, timeout=30).json()["prompt_id"]
    assert server.wait(prompt)["status"]["status_str"] == "success"
    assert start_steps(server, "over") == [0, 0]
    assert ask(server, training("over", epochs=3))["kind"] == "continues"


def test_failure_is_reported_to_the_panel_with_its_fixes(server: Server) -> None:
    earlier = len(server.messages)
    prompt = server.queue(training("fails", preset="style-sdxl"))
    assert server.wait(prompt)["status"]["status_str"] == "error"
    (failed,) = [message["data"] for message in server.messages[earlier:] if message["type"] == "animelora.failed"]
    assert failed["node_id"] == "train"
    assert "style-sdxl" in failed["message"] and failed["hint"].startswith("Choose ")
    assert failed["fixes"][0]["value"] == "style-sd15"


def test_dataset_of_another_pack_or_node_is_unknown(server: Server) -> None:
    graph = training("unknown") | {"prep": node("SomeoneElsesDataset", path=str(Path.home()))}
    assert ask(server, graph)["missing"] == "dataset"
    graph["train"]["inputs"]["dataset"] = ["nowhere", 0]
    assert ask(server, graph, run="../..")["missing"] == "dataset"
