"""Deleted files of our nodes are written again by the next prompt, and nothing else is repeated."""

from __future__ import annotations

from typing import Any

from filelock import FileLock

from tests.server.comfy_server import Server
from tests.server.files import TINY
from tests.server.graphs import Graph, node, prepare, train_settings
from trainer.dataset.preparation.preparation_progress import WAITING_FOR_FOLDER
from trainer.runs.event_log import read_events


def test_deleted_lora_is_written_again_by_the_next_prompt(server: Server) -> None:
    settings = train_settings(name="deleted", checkpoint_every=1, max_steps=2, validate_every=0)
    export: dict[str, Any] = {"lora_name": "(lora input)", "file_name": "", "format": "diffusers", "dtype": "as it is", "rank": 0}
    export |= {"title": "", "author": "", "description": "", "trigger_words": "", "tags": "", "licence": ""}
    graph: Graph = {
        "prep": prepare(trigger_word="deletedToken"),
        "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings),
        "pick": node("AnimeLoRA_PickEpoch", run="(lora input)", step=1, save_as="deleted picked", lora=["train", 0]),
        "export": node("AnimeLoRA_ExportLora", lora=["train", 0], **export),
    }
    server.forget()
    assert set(graph) <= server.executed(graph)
    assert not server.executed(graph)
    loras, output = server.base / "models" / "loras", server.base / "output" / "animelora"
    (run,) = (output / "runs").glob("deleted-*")
    started = len(read_events(run / "events.jsonl"))
    written = {
        "train": loras / "deleted.safetensors",
        "pick": loras / "deleted picked.safetensors",
        "export": output / "exports" / "deleted.safetensors",
    }
    for name, file in written.items():
        content = file.read_bytes()
        file.unlink()
        assert name in server.executed(graph)
        assert file.read_bytes() == content
        assert not server.executed(graph)
    assert len(read_events(run / "events.jsonl")) == started, "it trained again"


def test_waiting_preparation_can_be_cancelled_and_continues_when_unlocked(server: Server) -> None:
    graph: Graph = {"prep": prepare(trigger_word="waitingToken")}
    server.forget()
    hidden = server.base / "output" / "animelora" / "datasets" / "waitingToken_face" / ".prepare"
    hidden.mkdir(parents=True)
    with FileLock(str(hidden / "lock")):
        first = server.queue(graph)
        server.wait_for_text(WAITING_FOR_FOLDER)
        server.interrupt()
        messages = server.wait(first)["status"]["messages"]
        assert "execution_interrupted" in [kind for kind, _ in messages]
        server.texts.clear()
        second = server.queue(graph)
        server.wait_for_text(WAITING_FOR_FOLDER)
    assert server.wait(second)["status"]["status_str"] == "success", server.log()[-3000:]
