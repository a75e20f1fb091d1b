"""Ours and kohya's trainer measured in turns, for a machine with other load.

    python benchmarks/alternate.py --path sd-scripts --python sd-scripts/venv/bin/python

Each round trains with both, one after the other, and compares their median steps in that round, in seconds and in CPU seconds of all
threads. The second hardly depends on other load. The median of the rounds is printed, and each trainer's best round is written to
``benchmarks/results`` with the label ``alternating``. The other options are those of ``speed.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers, speed
from benchmarks.work import Work
from trainer.core.terminal import escape_unprintable

TRAINERS = ("ours", "kohya")
LABEL = "alternating"

Round = Mapping[str, Mapping[str, Any]]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--path", type=Path, required=True, help="checkout of sd-scripts")
    parser.add_argument("--python", default=sys.executable, help="the Python that has its requirements")
    parser.add_argument("--model", choices=peers.MODELS, default="anima-4")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=10, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of ours")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the pictures are kept; else a temporary one")
    parser.add_argument("--results", type=Path, default=speed.RESULTS)
    chosen = parser.parse_args()
    work = Work(
        chosen.model, chosen.resolution, chosen.batch, chosen.rank, chosen.precision, chosen.device, chosen.steps, chosen.checkpointing
    )
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="animelora-speed-") as temporary:
        for number in range(chosen.rounds):
            # who comes first alternates, too
            order = TRAINERS if number % 2 == 0 else TRAINERS[::-1]
            measured = {}
            for trainer in order:
                options = argparse.Namespace(**{**vars(chosen), "trainer": trainer, "label": LABEL})
                measured[trainer] = speed.measure(options, work, chosen.folder or Path(temporary))
            rounds.append(measured)
            print(json.dumps({"round": number + 1, **ratios([measured])}), flush=True)
    for trainer in TRAINERS:
        speed.write(min((measured[trainer] for measured in rounds), key=lambda row: float(row["step_seconds"])), chosen.results)
    print(json.dumps({"rounds": len(rounds), **ratios(rounds)}))
    return 0


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """How many times as fast as kohya's trainer ours is: the median over the rounds, by seconds and by CPU seconds a step."""

    def ratio(measure: str) -> float:
        return round(statistics.median(float(each["kohya"][measure]) / float(each["ours"][measure]) for each in rounds), 3)

    return {"times_as_fast": ratio("step_seconds"), "times_as_fast_by_cpu_seconds": ratio("processor_step_seconds")}


if __name__ == "__main__":
    escape_unprintable()
    sys.exit(main())
