"""What a training process imports before it trains: seconds, modules and opened files, of whole packages and as the trainer imports them.

    python benchmarks/imports.py [--times 3]

Each row is a fresh process of the Python that runs this, in turns; seconds are the median, with the files in the system's cache. "whole"
imports diffusers' UNet and peft by their own statements, "lean" by ``trainer.core.library_imports``, which hides what no
training needs from them. What both import first (torch, accelerate, the trainer) is the row "before".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import table
from trainer.core.terminal import escape_unprintable

ROOT = Path(__file__).resolve().parents[1]
WAYS = {
    "whole": "import diffusers.models.unets.unet_2d_condition, peft",
    "lean": "import trainer.core.library_imports; trainer.core.library_imports.import_models()",
}
_CHILD = """
import gc, json, sys, time
gc.disable()  # as the training process does
opened = 0
def count(event, arguments):
    global opened
    opened += event == "open" and isinstance(arguments[0], str)
sys.addaudithook(count)
def look():
    return time.perf_counter(), len(sys.modules), opened
looks = [look()]
import torch, accelerate, trainer.training.run
looks.append(look())
{statement}
looks.append(look())
print(json.dumps(looks))
"""


class Cost(NamedTuple):
    """The cost of an import."""

    seconds: float
    modules: int
    files: int


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args(arguments).times
    taken = [measure(statement) for _ in range(times + 1) for statement in WAYS.values()][len(WAYS) :]  # the first fill the system's cache
    print(table.heading(("imports", "seconds", "modules", "files opened")))
    print_row("before", [before for before, _ in taken])
    for place, name in enumerate(WAYS):
        print_row(name, [cost for _, cost in taken[place :: len(WAYS)]])


def print_row(name: str, costs: list[Cost]) -> None:
    """A line of the table, with medians."""
    seconds, modules, files = (statistics.median(column) for column in zip(*costs, strict=True))
    print(table.line([name, f"{seconds:.2f}", f"{modules:.0f}", f"{files:.0f}"]), flush=True)


def measure(statement: str) -> tuple[Cost, Cost]:
    """The cost, in a new process, of what precedes ``statement`` and of ``statement`` itself."""
    command = [sys.executable, "-c", _CHILD.format(statement=statement)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    start, before, after = json.loads(done.stdout.splitlines()[-1])
    first, second = ([b - a for a, b in zip(*pair, strict=True)] for pair in ((start, before), (before, after)))
    return Cost(*first), Cost(*second)


if __name__ == "__main__":
    escape_unprintable()
    main()
