"""ComfyUI's portable version for Windows: ``python.exe -s`` of python_embeded beside ComfyUI, in folders with spaces and other scripts.

Runs where Python is one of Windows; ``python tests/tools/windows.py --server tests/server/test_windows.py`` brings one on Linux.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.comfy_server import Server, start, until
from tests.server.files import TINY, portrait
from tests.server.graphs import CHAIN, Graph, node, prepare, train_and_use, train_settings
from tests.tools.children.processes import living
from tests.tools.comfyui import ComfyUI
from trainer.runs import events, states
from trainer.runs.event_log import read_events

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "nt", reason="NOT CHECKED: this is about Windows")]


@pytest.fixture(scope="module")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Server]:
    """A ComfyUI started as the portable version starts it, below the folder of a user with an unusual name."""
    base = tmp_path_factory.mktemp("Zoë 山田's files")
    pictures = base / "input" / "portraits"
    pictures.mkdir(parents=True)
    for number in range(4):
        portrait(96 + 8 * number, number).save(pictures / f"顔 {number}.png")
    (pictures / "顔 0.txt").write_bytes("girl with a round face, 帽子\r\n".encode())
    portrait(72, 9).save(base / "input" / "photo.png")
    (base / "models" / "checkpoints").mkdir(parents=True)
    shutil.copy2(tiny_checkpoint, base / "models" / "checkpoints" / TINY)
    running = start(comfyui.path, comfyui.python, base, flags=("-s",))
    yield running
    running.stop()


def train_only(**changes: Any) -> Graph:
    settings = train_settings(validate_every=0, **changes)
    return {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings)}


def run_folder(server: Server, name: str) -> Path:
    """The run of a LoRA's name. Waits until it exists."""
    runs = server.base / "output" / "animelora" / "runs"
    until(lambda: bool(list(runs.glob(f"{name}-*/events.jsonl"))), server.log()[-3000:])
    return next(runs.glob(f"{name}-*"))


def steps(run: Path) -> list[int]:
    return [event.step for event in read_events(run / "events.jsonl") if isinstance(event, events.Step)]


def trainers(run: Path) -> list[psutil.Process]:
    return [each.process for each in living() if Path(each.run) == run]


def test_whole_chain_runs_on_windows(server: Server) -> None:
    graph = train_and_use(TINY, full=False, image="photo.png", **{**CHAIN, "precision": "fp32", "name": "鎖 chain"})
    outputs = server.run(graph)
    log = server.log()
    assert "576 of 576 keys used" in log  # 192 modules, each with down, up and alpha
    assert "Traceback" not in log and "Logging error" not in log
    assert all(path.is_file() for path in server.images(outputs, "save"))
    assert (server.base / "models" / "loras" / "鎖 chain.safetensors").is_file()
    caption = next((server.base / "output" / "animelora" / "datasets").rglob("*.txt")).read_bytes()
    assert b"\r" not in caption
    seen = len(read_events(run_folder(server, "鎖 chain") / "events.jsonl"))
    server.forget()
    server.run({name: graph[name] for name in ("prep", "train")})
    assert len(read_events(run_folder(server, "鎖 chain") / "events.jsonl")) == seen, "it trained again"


def test_cancel_leaves_no_process_and_the_next_queue_resumes(server: Server) -> None:
    wanted = train_only(name="cancelled", max_steps=0, epochs=400, checkpoint_every=0)
    prompt = server.queue(wanted)
    run = run_folder(server, "cancelled")
    until(lambda: len(steps(run)) > 2, server.log()[-3000:])
    assert trainers(run)
    server.interrupt()
    assert server.wait(prompt)["status"]["messages"][-1][0] == "execution_interrupted"
    until(lambda: not trainers(run), "the training process is still there")
    saved, _ = states.newest(run / "checkpoints")
    assert saved is not None and saved.step == steps(run)[-1]
    seen = len(steps(run))
    prompt = server.queue(wanted)
    until(lambda: len(steps(run)) > seen, server.log()[-3000:])
    server.interrupt()
    server.wait(prompt)
    assert steps(run)[seen] == saved.step + 1


def test_killed_server_leaves_no_orphan(server: Server) -> None:
    server.queue(train_only(name="orphan", max_steps=0, epochs=400, checkpoint_every=0))
    run = run_folder(server, "orphan")
    until(lambda: len(steps(run)) > 2, server.log()[-3000:])
    assert trainers(run)
    server.process.kill()
    server.process.wait()
    until(lambda: not trainers(run), "an orphan goes on training")
    saved, _ = states.newest(run / "checkpoints")
    assert saved is not None and saved.step == steps(run)[-1], "the last step was not saved"
    time.sleep(0.5)
    shutil.rmtree(run)  # fails if a process holds its files
