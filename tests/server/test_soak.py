"""Fifty runs in a row in one server: it does not grow, and what is old is pruned without a LoRA being lost.

Each run trains for real and is started, read and ended by the launcher as ever; only the seconds in which a child imports its
libraries are saved (``tests/tools/preloaded_trainer.py``). The first runs warm caches up and do not count.

What is allowed: memory may grow by half a megabyte a run: ComfyUI keeps the graph and the answers of every prompt of its history. A
tensor, process or pipe that stays behind in each run is more. What counts is memory that no file backs (pages of libraries come and go as
the machine needs them), and its lowest point over several runs: what a run borrows for a while goes back, a leak does not. Threads, file
handles and children: none.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.server.comfy_server import Server, start
from tests.server.files import TINY, link, portrait
from tests.server.graphs import Graph, node, prepare, train_settings
from tests.tools.comfyui import ComfyUI

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: the preloaded trainer forks")]
RUNS, WARM, SPAN = 50, 15, 10
GROWTH = 0.5e6  # bytes a run
OLD = 40 * 86_400  # seconds; the rule says 30 days
NAME = 'it\'s 東京 "soak" 🎨'


@dataclass(frozen=True)
class Size:
    """What the server process holds."""

    memory: int
    threads: int
    handles: int
    children: int


def size_of(server: Server) -> Size:
    """Once the server has closed the connection of the last question, which takes it a moment; one that stays open counts."""
    process = psutil.Process(server.process.pid)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        open_connections = [it for it in process.net_connections("tcp") if it.status != psutil.CONN_LISTEN]
        if len(open_connections) <= 1:  # the WebSocket
            break
        time.sleep(0.05)
    return Size(anonymous_memory(process), process.num_threads(), process.num_fds(), len(process.children(recursive=True)))


def anonymous_memory(process: psutil.Process) -> int:
    """Bytes of a process that no file backs; where the system does not tell them (macOS), all that it shares with no other process."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return int(process.memory_full_info().uss)
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    return (kilobytes["RssAnon"] + kilobytes.get("VmSwap", 0)) * 1024


def one_run(seed: int) -> Graph:
    """The shortest run: one step, no test picture. Each seed is another run with another LoRA."""
    settings = train_settings(name=f"{NAME} {seed}", max_steps=1, validate_every=0, rank=1, training_seed=seed, checkpoint_every=1)
    return {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings)}


@pytest.fixture(scope="module")
def soaked(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path, quick_trainer: Callable[[Path], Path]
) -> Iterator[Server]:
    """A server of its own, whose children come from a preloaded trainer, in a folder with a name that needs care."""
    base = tmp_path_factory.mktemp("soak") / NAME
    pictures = base / "input" / "portraits"
    pictures.mkdir(parents=True)
    for number in range(2):
        portrait(64 + 8 * number, number).save(pictures / f"{number}.png")
    (base / "models" / "checkpoints").mkdir(parents=True)
    link(shallow_checkpoint, base / "models" / "checkpoints" / TINY)
    running = start(comfyui.path, comfyui.python, base, children=quick_trainer(comfyui.python))
    yield running
    running.stop()


def loras(server: Server) -> dict[str, str]:
    """The digest of every published LoRA by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (server.base / "models" / "loras").glob("*.safetensors")}


def test_fifty_runs_leave_the_server_as_it_was(soaked: Server) -> None:
    sizes = []
    for seed in range(RUNS):
        soaked.run(one_run(seed))
        sizes.append(size_of(soaked))
    assert len(loras(soaked)) == RUNS
    assert len(set(loras(soaked).values())) == RUNS, "they were not trained one by one"
    warm, last = sizes[WARM : WARM + SPAN], sizes[-SPAN:]

    def grown(of: str) -> int:
        before, after = (min(getattr(size, of) for size in group) for group in (warm, last))
        return int(after - before)

    told = [f"{size.memory / 1e6:.1f} MB, {size.threads} threads, {size.handles} handles" for size in sizes]
    assert grown("memory") <= GROWTH * (RUNS - WARM - SPAN), told
    assert grown("threads") <= 0, told
    assert grown("handles") <= 0, told
    assert {size.children for size in sizes} == {0}


def test_what_is_old_is_pruned_after_a_run_and_every_lora_stays(soaked: Server) -> None:
    runs = soaked.base / "output" / "animelora" / "runs"
    assert len(loras(soaked)) == RUNS, "this follows the fifty runs"
    published = loras(soaked)
    trained = sorted(path for path in runs.iterdir() if (path / "result.json").is_file())
    cached = [*(runs / "_cache").rglob("*.safetensors")]
    long_ago = time.time() - OLD
    old = trained[: RUNS // 2]
    unfinished = old[0]
    (unfinished / "result.json").unlink()
    for path in [*(folder / "result.json" for folder in old[1:]), *cached]:
        os.utime(path, (long_ago, long_ago))
    kept = {path: path.read_bytes() for folder in trained for path in folder.rglob("*.safetensors")}

    def states() -> set[Path]:
        return {path.parents[2] for path in runs.rglob("state.pt")}

    assert states() == set(trained)
    soaked.run(one_run(RUNS))
    newest = next(path for path in runs.iterdir() if path.name.startswith(f"{NAME} {RUNS}".replace('"', "_")))
    assert states() == {*trained[RUNS // 2 :], unfinished, newest}
    assert not any(path.exists() for path in cached)
    assert {path: path.read_bytes() for path in kept} == kept
    assert {name: digest for name, digest in loras(soaked).items() if name in published} == published
