"""Many runs in a row in one server: it does not grow, and pruning old states loses no LoRA. Fifty runs with ``--long``, else ten.

Each run trains for real, and the launcher starts, reads and ends it as usual; children only skip importing their libraries
(``tests/tools/children/preloaded_trainer.py``). The first runs warm up caches and do not count.

Memory may grow by half a megabyte a run, since ComfyUI keeps the graph and the outputs of every prompt in its history; a tensor, process or
pipe left behind by each run is more. Only memory that no file backs counts (pages of libraries come and go), and of that the lowest point
over several runs, since memory that a run borrows comes back and a leak does not. A few runs are too few to tell a small leak from noise,
so the short form allows 8 MB more. Threads, file handles and children may not grow at all.
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
GROWTH = 0.5e6  # bytes a run
OLD = 40 * 86_400  # seconds; states are kept for 30 days
NAME = 'it\'s 東京 "soak" 🎨'


@dataclass(frozen=True)
class Soak:
    """How many runs there are, how many of them warm up, over how many the lowest point is taken, and the bytes allowed for noise."""

    runs: int
    warm_up: int
    span: int
    noise: float = 0.0


@pytest.fixture(scope="module")
def soak(long_form: bool) -> Soak:
    return Soak(50, 15, 10) if long_form else Soak(10, 4, 3, noise=8e6)


@dataclass(frozen=True)
class Size:
    """What the server process holds."""

    memory: int
    threads: int
    handles: int
    children: int


def size_of(server: Server) -> Size:
    """Measured once the server has closed the connection of the last request, which takes a moment; one that stays open counts."""
    process = psutil.Process(server.process.pid)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        open_connections = [it for it in process.net_connections("tcp") if it.status != psutil.CONN_LISTEN]
        if len(open_connections) <= 1:  # the WebSocket
            break
        time.sleep(0.05)
    return Size(anonymous_memory(process), process.num_threads(), process.num_fds(), len(process.children(recursive=True)))


def anonymous_memory(process: psutil.Process) -> int:
    """Bytes of a process that no file backs; where the system does not report them (macOS), bytes that it shares with no other process."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return int(process.memory_full_info().uss)
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    return (kilobytes["RssAnon"] + kilobytes.get("VmSwap", 0)) * 1024


def one_run(seed: int) -> Graph:
    """The shortest run: one step, no validation image. Each seed is another run with another LoRA."""
    settings = train_settings(name=f"{NAME} {seed}", max_steps=1, validate_every=0, rank=1, training_seed=seed, checkpoint_every=1)
    return {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **settings)}


@pytest.fixture(scope="module")
def soaked(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path, quick_trainer: Callable[[Path], Path]
) -> Iterator[Server]:
    """A separate server whose children come from a preloaded trainer, in a folder whose name needs escaping."""
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


def test_many_runs_leak_nothing(soaked: Server, soak: Soak) -> None:
    sizes = []
    for seed in range(soak.runs):
        soaked.run(one_run(seed))
        sizes.append(size_of(soaked))
    assert len(loras(soaked)) == soak.runs
    assert len(set(loras(soaked).values())) == soak.runs, "they were not trained one by one"
    warm, last = sizes[soak.warm_up : soak.warm_up + soak.span], sizes[-soak.span :]

    def grown(of: str) -> int:
        before, after = (min(getattr(size, of) for size in group) for group in (warm, last))
        return int(after - before)

    measured = [f"{size.memory / 1e6:.1f} MB, {size.threads} threads, {size.handles} handles" for size in sizes]
    assert grown("memory") <= GROWTH * (soak.runs - soak.warm_up - soak.span) + soak.noise, measured
    assert grown("threads") <= 0, measured
    assert grown("handles") <= 0, measured
    assert {size.children for size in sizes} == {0}


def test_old_states_are_pruned_and_every_lora_is_kept(soaked: Server, soak: Soak) -> None:
    runs = soaked.base / "output" / "animelora" / "runs"
    assert len(loras(soaked)) == soak.runs, "this follows the runs of the first test"
    published = loras(soaked)
    trained = sorted(path for path in runs.iterdir() if (path / "result.json").is_file())
    cached = [*(runs / "_cache").rglob("*.safetensors")]
    long_ago = time.time() - OLD
    old = trained[: soak.runs // 2]
    unfinished = old[0]
    (unfinished / "result.json").unlink()
    for path in [*(folder / "result.json" for folder in old[1:]), *cached]:
        os.utime(path, (long_ago, long_ago))
    kept = {path: path.read_bytes() for folder in trained for path in folder.rglob("*.safetensors")}

    def states() -> set[Path]:
        return {path.parents[2] for path in runs.rglob("state.pt")}

    assert states() == set(trained)
    soaked.run(one_run(soak.runs))
    newest = next(path for path in runs.iterdir() if path.name.startswith(f"{NAME} {soak.runs}".replace('"', "_")))
    assert states() == {*trained[soak.runs // 2 :], unfinished, newest}
    assert not any(path.exists() for path in cached)
    assert {path: path.read_bytes() for path in kept} == kept
    assert {name: digest for name, digest in loras(soaked).items() if name in published} == published
