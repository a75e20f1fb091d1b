"""How long a run with warm caches takes until its first step, split into parts.

    python benchmarks/start.py CHECKPOINT DATASET [--precision bf16] [--device cpu] [--memory auto] [--times 3]

Trains one step to fill the caches, then one as often as asked, each with another seed, through the launcher as ever. DATASET is a
prepared folder, as Dataset Prep makes it. Prints a line for each start and one of medians, in seconds:

- prepare: the parent opens dataset and checkpoint, and fills in the memory preset, if there is one;
- imports: until torch and accelerate are loaded and the child says its first word;
- plan: diffusers and peft are imported, the run is planned, its caches are found full;
- load: the rest of the UNet's reading, which begins beside the plan, is waited for, and LoRA is put in;
- step: the first step, on a CPU with the packing of the weights;
- all of them together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import table
from trainer.config import memory_presets, run_config
from trainer.core.terminal import escape_unprintable
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events

PARTS = ("prepare", "imports", "plan", "load", "step")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--memory", default="none", choices=["none", "auto", *memory_presets.SIZES])
    parser.add_argument("--times", type=int, default=3)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="animelora-start-") as runs:
        starts = []
        print(table.heading(("start", *PARTS, "all")))
        for number in range(chosen.times + 1):
            parts = start(chosen, Path(runs), number)
            if number:  # the first run fills the caches
                starts.append(parts)
                print_row(str(number), parts)
        print_row("median", [statistics.median(column) for column in zip(*starts, strict=True)])


def print_row(name: str, parts: list[float]) -> None:
    """A line of the table, ending with the sum."""
    print(table.line([name, *(f"{seconds:.1f}" for seconds in (*parts, sum(parts)))]), flush=True)


def start(chosen: argparse.Namespace, runs: Path, seed: int) -> list[float]:
    """Seconds of each of ``PARTS`` of one run."""
    data: dict[str, Any] = {
        "base": {"checkpoint": str(chosen.checkpoint)},
        "dataset": {"path": str(chosen.dataset)},
        "network": {"rank": 8, "alpha": 8.0},
        "training": {
            **{"epochs": 1, "max_steps": 1, "batch_size": 1, "gradient_accumulation": 1, "checkpoint_every": 0},
            **{"precision": chosen.precision, "device": chosen.device, "memory": chosen.memory, "seed": seed},
        },
        "sample": {"every_epochs": 0},
        "output": {"runs": str(runs), "tensorboard": False},
    }
    told: list[events.Event] = []
    child_started: list[float] = []
    began = time.time()
    launcher.train(prepare_run(run_config.parse(data)), on_event=told.append, before_start=lambda: child_started.append(time.time()))
    return split(began, child_started[0], told)


def split(began: float, child_started: float, told: list[events.Event]) -> list[float]:
    """Seconds of each of ``PARTS``, from the start of the run (seconds since 1970) and the child's events."""
    loading = [event.time for event in told if isinstance(event, events.Phase) and event.phase == "loading"]
    training = next(event.time for event in told if isinstance(event, events.Phase) and event.phase == "training")
    first = next(event.time for event in told if isinstance(event, events.Step))
    return [after - before for before, after in pairwise((began, child_started, loading[0], loading[-1], training, first))]


if __name__ == "__main__":
    escape_unprintable()
    main()
