"""How the cost of a run grows with the number of images and processes. Needs neither a GPU nor a download.

    python benchmarks/growth.py [--images 10,100,1000,10000] [--processes 1,2] [--steps 40]

For each number of pictures it trains the same few steps of a tiny model twice, through the launcher as ever: once with empty caches
and once, with another seed, with full ones. Prints one line each:

- caching: seconds a picture, between the first and the last that the child told;
- start: seconds from the launcher's call to the first step, with full caches (reading the dataset, its hash, the child's imports, loading);
- step: median seconds of a step after the warm-up;
- memory: the largest resident size of the training process, in GB, with empty caches and with full ones.

And for each number of processes, on one dataset: images per second, and the efficiency beside one process with as many threads in all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import table
from random_checkpoints.make_checkpoint import make_checkpoint
from trainer.config import run_config
from trainer.config.prepare_sections import CleanSettings
from trainer.core import devices
from trainer.core.terminal import escape_unprintable
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events

SIDE = 64
WARM_UP = 5
DISTINCT = 64  # distinct images; further ones are copies with one pixel changed


@dataclass
class Seen:
    """The events of one run, with the launcher's clock."""

    began: float
    steps: list[float] = field(default_factory=list)
    cached: list[tuple[float, int]] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    memory: int = 0

    def on_event(self, event: events.Event) -> None:
        """The launcher's event handler."""
        if isinstance(event, events.Step):
            self.steps.append(event.time)
            self.speeds.append(event.images_per_second)
        elif isinstance(event, events.Phase) and event.phase == "caching latents":
            self.cached.append((event.time, event.done))

    @property
    def start(self) -> float:
        """Seconds to the end of the first step."""
        return self.steps[0] - self.began

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(after - before for before, after in zip(self.steps[WARM_UP:], self.steps[WARM_UP + 1 :], strict=False))

    @property
    def caching(self) -> float:
        """Seconds per image."""
        (first, done), (last, all_done) = self.cached[0], self.cached[-1]
        return (last - first) / max(1, all_done - done)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", default="10,100,1000,10000", help="numbers of pictures")
    parser.add_argument("--processes", default="1,2", help="numbers of processes")
    parser.add_argument("--steps", type=int, default=40)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="animelora-growth-") as temporary:
        folder = Path(temporary)
        checkpoint = make_checkpoint(folder / "tiny.safetensors", "tiny")
        heads = ("Pictures", "caching, ms a picture", "start with full caches, s", "step, ms", "memory, empty caches, GB", "full, GB")
        print(table.heading(heads))
        for count in numbers(chosen.images):
            place = folder / str(count)
            dataset = make_dataset(place, count)
            cold, warm = (run(checkpoint, dataset, place / "runs", seed, chosen.steps) for seed in (1, 2))
            cells = (f"{1000 * cold.caching:.1f}", f"{warm.start:.1f}", f"{1000 * warm.step:.0f}")
            print(table.line([str(count), *cells, f"{cold.memory / 1e9:.2f}", f"{warm.memory / 1e9:.2f}"]), flush=True)
        print()
        print(table.heading(("Processes", "threads each", "images a second", "efficiency")))
        dataset, first = make_dataset(folder / "shared", 64), 0.0
        for count in numbers(chosen.processes):
            seen = run(checkpoint, dataset, folder / "shared" / "runs", 1, chosen.steps, processes=count, batch=8)
            speed = 8 / seen.step
            first = first or speed
            threads = os.environ.get("OMP_NUM_THREADS") or devices.processor_threads(count)  # as the launcher decides
            print(table.line([str(count), str(threads), f"{speed:.2f}", f"{speed / first:.2f}"]), flush=True)


def numbers(text: str) -> list[int]:
    """``10,100`` as a list."""
    return [int(part) for part in text.split(",") if part]


def make_dataset(folder: Path, count: int) -> Path:
    """A prepared dataset of ``count`` small images."""
    source = folder / "pictures"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        if number < DISTINCT:
            base = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            picture = np.asarray(Image.fromarray(base).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        changed = picture.copy()
        changed.reshape(-1)[number] ^= 1
        Image.fromarray(changed).save(source / f"{number:05d}.png")
    settings = PrepareSettings(trigger="growth", resolution=SIDE, clean=CleanSettings(near_duplicates=False))
    return prepare_dataset(source, folder / "datasets", settings).dataset.path


def run(checkpoint: Path, dataset: Path, runs: Path, seed: int, steps: int, *, processes: int = 1, batch: int = 1) -> Seen:
    """Train ``steps`` steps of rank 4 in fp32 on the CPU."""
    data: dict[str, Any] = {
        "name": f"growth-{processes}",
        "base": {"checkpoint": str(checkpoint)},
        "dataset": {"path": str(dataset)},
        "network": {"rank": 4},
        "training": {
            **{"epochs": steps, "max_steps": steps, "batch_size": batch, "gradient_accumulation": 1, "checkpoint_every": 0},
            **{"precision": "fp32", "device": "cpu", "seed": seed, "processes": processes},
        },
        "sample": {"every_epochs": 0},
        "output": {"runs": str(runs), "tensorboard": False},
    }
    settings = run_config.parse(data)
    seen = Seen(time.time())
    with watched(seen):
        launcher.train(prepare_run(settings), on_event=seen.on_event)
    return seen


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Record the largest child process."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    seen.memory = max(seen.memory, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    escape_unprintable()
    main()
