"""The routes of the history list runs and waiting trainings, return the settings of a run, and delete runs of this server only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from filelock import FileLock

from tests.server.comfy_server import Server, until
from tests.server.files import TINY
from tests.server.graphs import Graph, node, prepare, train_settings
from tests.tools.run_folders import PROMPT, make_run
from trainer.runs.publish import publish
from trainer.runs.run_folder import RunFolder


def runs_of(server: Server) -> Path:
    return server.base / "output" / "animelora" / "runs"


def row(server: Server, run: RunFolder) -> dict[str, Any] | None:
    """The run in the list, if it is there."""
    rows: list[dict[str, Any]] = server.get("/animelora/history")["runs"]
    return next((each for each in rows if each["run"] == run.path.name), None)


def post(server: Server, run: RunFolder, what: str, **request: Any) -> requests.Response:
    return requests.post(f"{server.url}/animelora/runs/{run.path.name}/{what}", timeout=60, **request)


def test_a_run_is_listed_with_its_last_image_and_size(server: Server) -> None:
    run = make_run(runs_of(server), "listed", states=(4,), start=4e9)
    answer = server.get("/animelora/history")
    listed = answer["runs"][0]  # it starts in the future
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    expected = {"run": run.path.name, "name": "listed", "state": "finished", "step": 8, "steps": 8, "epochs": 2, "images": 6, "bytes": size}
    assert {key: listed[key] for key in expected} == expected
    assert listed["states"] == [{"step": 4, "lora": True, "state": True}]
    assert answer["bytes"] >= size
    image = requests.get(f"{server.url}/view", params=listed["view"], timeout=30).content
    assert image == (run.samples / "epoch-002-00.png").read_bytes()


def test_settings_of_a_run_are_values_of_widgets(server: Server) -> None:
    here = {"checkpoint": str(server.base / "models" / "checkpoints" / TINY)}
    run = make_run(runs_of(server), "settings", base=here, training={"epochs": 3, "ema_decay": 0.5}, sample={"prompts": [PROMPT, "a cat"]})
    settings = server.get(f"/animelora/runs/{run.path.name}/settings")
    shown = settings["values"]["AnimeLoRA_TrainLora"]
    assert (shown["checkpoint"], shown["name"], shown["epochs"]) == (TINY, "settings", 3)
    assert shown["validation_prompts"] == f"{PROMPT}\na cat"
    assert (settings["needed"], settings["not_set"], settings["dataset"]) == (["AnimeLoRA_LearningOptions"], [], "girls")
    lost = make_run(runs_of(server), "lost_base", base={"checkpoint": "/elsewhere/lost.safetensors"})
    (missing,) = server.get(f"/animelora/runs/{lost.path.name}/settings")["not_set"]
    assert (missing["key"], missing["reason"], missing["widget"]) == ("base.checkpoint", "missing", "checkpoint")


def test_a_damaged_configuration_has_no_settings(server: Server) -> None:
    run = make_run(runs_of(server), "damaged_settings")
    run.config.write_text("{", encoding="utf-8")
    answer = requests.get(f"{server.url}/animelora/runs/{run.path.name}/settings", timeout=30)
    assert answer.status_code == 400
    assert "is not valid" in answer.json()["error"]


def test_a_run_is_deleted_and_its_published_lora_only_if_asked(server: Server) -> None:
    loras = server.base / "models" / "loras"
    for name, with_lora in (("lora_stays", False), ("lora_goes", True)):
        run = make_run(runs_of(server), name, states=(4, 8))
        publish(run, str(loras))
        assert server.get(f"/animelora/runs/{run.path.name}/published") == {"lora": f"{name}.safetensors"}
        deleted = post(server, run, "delete", json={"lora": with_lora})
        assert deleted.status_code == 200
        assert {key: deleted.json()[key] for key in ("states", "images", "lora")} == {
            "states": 2,
            "images": 6,
            "lora": f"{name}.safetensors" if with_lora else None,
        }
        assert row(server, run) is None
        assert not run.path.exists()
        assert (loras / f"{name}.safetensors").is_file() is not with_lora


def test_what_was_saved_at_a_step_is_deleted(server: Server) -> None:
    run = make_run(runs_of(server), "one_step", states=(4, 8))
    assert post(server, run, "delete_step", json={"step": 5}).status_code == 400
    assert post(server, run, "delete_step", json={"step": 4}).json()["states"] == 1
    listed = row(server, run)
    assert listed is not None
    assert listed["states"] == [{"step": 8, "lora": True, "state": True}]


def test_other_sites_and_odd_requests_delete_nothing(server: Server) -> None:
    run = make_run(runs_of(server), "guarded")
    other = make_run(server.base / "output" / "animelora" / "elsewhere", "outside")
    (runs_of(server) / "linked-0123456789abcdef").symlink_to(other.path, target_is_directory=True)
    for what, wanted in (("delete", {"lora": False}), ("delete_step", {"step": 4})):
        form = post(server, run, what, data=wanted)
        plain = post(server, run, what, data=str(wanted).replace("'", '"').lower(), headers={"Content-Type": "text/plain"})
        odd: list[Any] = [[wanted], {}, {"lora": "yes"}, {"step": "4"}, {"step": True}, None]
        for answer in (form, plain, *(post(server, run, what, json=each) for each in odd)):
            assert answer.status_code == 400, answer.text[:200]
        assert requests.get(f"{server.url}/animelora/runs/{run.path.name}/{what}", timeout=30).status_code in (404, 405)
        for name in (
            "..",
            "%2e%2e",
            "..%2felsewhere%2foutside-0123456789abcdef",
            "linked-0123456789abcdef",
            "_cache",
            "no-such-run",
            "a%00b",
        ):
            answer = requests.post(f"{server.url}/animelora/runs/{name}/{what}", json=wanted, timeout=30)
            assert answer.status_code in (400, 404, 405), (name, answer.text[:200])
    assert len([path for each in (run, other) for path in each.path.rglob("*.pt")]) == 2
    assert run.finished() is not None


def test_a_run_that_another_process_trains_is_refused(server: Server) -> None:
    run = make_run(runs_of(server), "elsewhere", steps=3, ending="step")
    with FileLock(str(run.parent_lock)):
        listed = row(server, run)
        assert listed is not None
        assert listed["state"] == "running"
        for what, wanted in (("delete", {"lora": False}), ("delete_step", {"step": 4})):
            refused = post(server, run, what, json=wanted)
            assert refused.status_code == 409
            assert refused.json()["error"].startswith("This run is being trained.")
    assert post(server, run, "delete", json={"lora": False}).status_code == 200


def test_waiting_trainings_are_listed_with_what_they_will_do(server: Server) -> None:
    def graph(name: str, epochs: int) -> Graph:
        settings = train_settings(name=name, max_steps=0, checkpoint_every=0, epochs=epochs, training_seed=77)
        return {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings)}

    def listed() -> dict[str, Any] | None:
        rows = server.get("/animelora/history")["runs"]
        return next((each for each in rows if each["name"] == "in_line" and each["state"] == "running"), None)

    def resumable() -> list[int]:
        now = listed()  # epochs with validation images have a LoRA without a state
        return [] if now is None else [each["step"] for each in now["states"] if each["state"]]

    server.queue(graph("in_line", 400))
    server.queue(graph("in_line", 500))
    server.queue({"prep": prepare()})  # trains nothing
    until(lambda: (now := listed()) is not None and now["step"] > 0, "the training does not appear")
    active = listed()
    assert active is not None
    run = RunFolder(runs_of(server) / active["run"], "in_line")
    for what, wanted in (("delete", {"lora": False}), ("delete_step", {"step": 4})):
        assert post(server, run, what, json=wanted).status_code == 409
    assert post(server, run, "control", json={"action": "save_now"}).status_code == 200
    until(lambda: bool(resumable()), "no state was saved")
    (step, *_) = resumable()
    (waiting,) = server.get("/animelora/history")["waiting"]
    expected = {"name": "in_line", "epochs": 500, "kind": "continues", "step": step, "steps": 2000}
    assert waiting == expected
    server.clear_queue()
    assert server.get("/animelora/history")["waiting"] == []
