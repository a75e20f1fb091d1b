"""Two ComfyUI servers that share output and LoRA folders, one of them killed, and graphs with two trainings. All names need escaping."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.comfy_server import Server, start, until
from tests.server.files import link, portrait
from tests.server.graphs import Graph, node, prepare, train_settings
from tests.tools.children.processes import living
from tests.tools.comfyui import ComfyUI
from trainer.runs import events, states
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: Windows has no such names, and no SIGKILL")]
SECONDS = 600  # that a child may need on a busy machine
ODD = 'Zoë\'s "two" 東京 🎨 & $(touch x) %TEMP% ' + "n" * 200  # 250 bytes
FOLDER = "my 'cats' \"and\" 犬 🐕 " + "d" * 215
LONG = "é'\"🎨 " * 50  # 250 characters, the name of a LoRA
CHECKPOINT = f"tiny {'c' * 200} é'\"🎨.safetensors"


@dataclass(frozen=True)
class Pair:
    """Two servers with their own inputs and checkpoints, one output folder and one LoRA folder."""

    comfyui: ComfyUI
    output: Path
    loras: Path
    first: Server
    second: Server

    def runs(self, name: str) -> list[Path]:
        """The run folders of a LoRA's name."""
        return list((self.output / "animelora" / "runs").glob(f"{name}-*"))


@pytest.fixture(scope="module")
def pair(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path, quick_trainer: Callable[[Path], Path]
) -> Iterator[Pair]:
    # the first server starts real training processes, since it is killed
    programs = {"first": None, "second": quick_trainer(comfyui.python)}
    root = tmp_path_factory.mktemp("pair")
    output = root / ODD
    servers: list[Server] = []
    try:
        for name in ("first", "second"):
            base = root / f"{name} {ODD[:60]}"
            pictures = base / "input" / FOLDER
            pictures.mkdir(parents=True)
            for number in range(2):
                portrait(64 + 8 * number, number).save(pictures / f"{'p' * 230} 猫 {number}.png")
            (pictures / f"{'p' * 230} 猫 0.txt").write_text('a "quoted" girl\'s 帽子 🎨 \\n %s {x} ' + "long " * 400, encoding="utf-8")
            (base / "models" / "checkpoints").mkdir(parents=True)
            link(shallow_checkpoint, base / "models" / "checkpoints" / CHECKPOINT)
            (root / "loras").mkdir(exist_ok=True)
            (base / "models" / "loras").symlink_to(root / "loras")
            servers.append(start(comfyui.path, comfyui.python, base, output=output, children=programs[name]))
        yield Pair(comfyui, output, root / "loras", servers[0], servers[1])
    finally:
        for server in servers:
            server.stop()


def training(name: str, **changes: Any) -> dict[str, Any]:
    """Train LoRA without validation images."""
    settings = train_settings(name=name, **{"validate_every": 0, "max_steps": 2, "checkpoint_every": 0, **changes})
    return node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=CHECKPOINT, **settings)


def graph(name: str, **changes: Any) -> Graph:
    return {"prep": prepare(FOLDER, trigger_word="my'Token\" 東 🎨"), "train": training(name, **changes)}


def trainers_of(folder: Path) -> list[psutil.Process]:
    """Living processes that train a run below ``folder``."""
    return [each.process for each in living() if each.run.startswith(str(folder))]


def steps(run: Path) -> list[int]:
    return [event.step for event in read_events(run / "events.jsonl") if isinstance(event, events.Step)]


def plans(run: Path) -> list[int]:
    """The step at which each start of the run began."""
    return [event.start_step for event in read_events(run / "events.jsonl") if isinstance(event, events.Plan)]


def test_second_server_waits_for_the_same_run_and_reuses_it(pair: Pair) -> None:
    wanted = graph("shared", epochs=60, max_steps=0)
    one = pair.first.queue(wanted)
    until(lambda: bool(pair.runs("shared")) and bool(steps(pair.runs("shared")[0])), pair.first.log()[-3000:])
    run = pair.runs("shared")[0]
    other = pair.second.queue(wanted)
    waited = False
    while not (run / "result.json").exists():
        waited = waited or any(m["type"] == "animelora.train" and m["data"]["event"] == "run" for m in pair.second.messages)
        assert not pair.second.children()
        assert pair.first.process.poll() is None
        time.sleep(0.02)
    for server, prompt in ((pair.first, one), (pair.second, other)):
        assert server.wait(prompt, SECONDS)["status"]["status_str"] == "success", server.log()[-3000:]
    assert waited, "the second server did not wait while the first one trained"
    assert pair.runs("shared") == [run]
    assert plans(run) == [0]
    pair.second.wait_for_text("found a finished run")
    assert [path.name for path in pair.loras.glob("shared*")] == ["shared.safetensors"]


def test_loras_of_one_name_published_by_both_servers_at_once_are_kept(pair: Pair, long_form: bool) -> None:
    servers, graphs = (pair.first, pair.second), [graph("twins", training_seed=seed) for seed in (1, 2)]
    for server, wanted in zip(servers, graphs, strict=True):
        server.run(wanted, SECONDS)
    trained = sorted(RunFolder(run, "twins").lora.read_bytes() for run in pair.runs("twins"))
    assert len(set(trained)) == 2
    for _ in range(5 if long_form else 2):
        for path in pair.loras.glob("twins*"):
            path.unlink()  # the next prompt publishes the finished run's LoRA again
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Server.run, servers, graphs))
        assert sorted(path.read_bytes() for path in pair.loras.glob("twins*")) == trained


def test_trainings_of_one_graph_and_the_next_prompt_run_in_sequence(pair: Pair) -> None:
    both = graph("left") | {"right": training("right"), "again": training("left")}
    prompts = [pair.second.queue(both), pair.second.queue(graph(LONG))]
    most = 0
    while pair.second.get("/prompt")["exec_info"]["queue_remaining"]:
        most = max(most, len(trainers_of(pair.output)))
        time.sleep(0.05)
    for prompt in prompts:
        assert pair.second.wait(prompt, SECONDS)["status"]["status_str"] == "success", pair.second.log()[-3000:]
    assert most == 1
    for name in ("left", "right", "é"):
        assert len(list(pair.loras.glob(f"{name}*.safetensors"))) == 1
        assert [plans(run) for run in pair.runs(f"{name}*")] == [[0]]


def test_killed_comfyui_leaves_no_orphan_and_the_next_one_resumes_the_run(pair: Pair) -> None:
    wanted = graph("orphan", epochs=400, max_steps=0)
    pair.first.queue(wanted)
    until(lambda: bool(pair.runs("orphan")) and len(steps(pair.runs("orphan")[0])) > 3, pair.first.log()[-3000:])
    run = pair.runs("orphan")[0]
    assert trainers_of(run)
    os.kill(pair.first.process.pid, signal.SIGKILL)
    pair.first.process.wait()
    until(lambda: not trainers_of(run), "an orphan is still training")
    saved, _ = states.newest(run / "checkpoints")
    assert saved is not None and saved.step >= 3
    seen = len(steps(run))

    restarted = start(pair.comfyui.path, pair.comfyui.python, pair.first.base, output=pair.output)
    try:
        prompt = restarted.queue(wanted)
        until(lambda: len(steps(run)) > seen, restarted.log()[-3000:])
        restarted.interrupt()
        restarted.wait(prompt, SECONDS)
        assert not restarted.children()
    finally:
        restarted.stop()
    assert plans(run) == [0, saved.step]
    assert steps(run)[seen] == saved.step + 1
